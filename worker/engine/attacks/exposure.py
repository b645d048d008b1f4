"""Exposure (Carlini et al., USENIX Security 2019): where an identifier ranks among others that could stand there."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, takewhile
from typing import TypeAlias

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.attacks.scores import LEVEL, Scores, least_unseen
from worker.engine.attacks.subject import Subject
from worker.engine.data import IGNORE_INDEX, batches, encode_all, most_tokens, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.head import Head, hidden_states
from worker.engine.identifiers import ADDRESSES, DATE_OF_BIRTH, NUMBER_KIND, Identifier, all_identifiers
from worker.engine.metrics.caching import cache_argument, caches_tokens
from worker.engine.metrics.token_scores import scores_of_rows, token_scores
from worker.engine.other_digits import OtherDigits, identifiers_with_digits
from worker.engine.progress import Progress, no_progress, partial_progress, with_progress
from worker.engine.saying import folded, secret_pattern
from worker.engine.types import CausalLM, Tokenizer

CANDIDATES = 100  # beside each identifier; of addresses, at most so many
MOST_TEXTS, MOST_UNSEEN = 32, 64  # of each side; of the unseen ones more if there are few to forget
MOST_OF_A_TEXT = 3  # identifiers of a kind
MOST_ATTACKS = 12  # that share a level
AT_ONCE = 6800  # tokens: all candidates after 60 tokens, a third of them after 200


@dataclass(frozen=True, slots=True)
class Secret:
    """An identifier in a text, and the text before it."""

    before: str = field(repr=False)
    identifier: Identifier


Secrets: TypeAlias = Sequence[Sequence[Secret]]  # of each text
Others: TypeAlias = Callable[[Secret], list[str]]  # what could stand in its place; [] if nobody knows
Ranked: TypeAlias = list[tuple[Secret, list[str]]]  # secrets of a text, and what could stand in their places


def exposure(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each request with numbers, the share of random numbers of their format that are less likely there.

    It is the greatest of the first three whose format unseen texts show, to the power of how many these are: so it is
    no greater for having more of them. Of any other number nobody knows what others there may be. If that leaves out
    most of the requests with a number, nothing is said of them.
    """
    return _exposure(subject, NUMBER_KIND, progress)


def exposure_dates(subject: Subject, progress: Progress = no_progress) -> Scores:
    """The same for dates of birth, among random dates of their form."""
    return _exposure(subject, DATE_OF_BIRTH, progress)


def secrets_in(text: str, kind: str) -> Iterator[Secret]:
    """The identifiers of a kind in a text that have some text before them, which does not say them already.

    Numbers and dates need several digits.
    """
    for one in (all_identifiers if kind in ADDRESSES else identifiers_with_digits)(text):
        before = text[: one.start]
        if one.kind == kind and before.strip() and not secret_pattern(one.value).search(folded(before)):
            yield Secret(before, one)


def number_ranks(subject: Subject, texts: Sequence[str], unseen: Sequence[str], candidates: int) -> list[int]:
    """Where the number of each text ranks among random ones of its format by likelihood; 1 is the likeliest.

    It is the first one whose format unseen texts show; a text without one has no rank.

    Args:
        subject: The model and its tokenizer.
        texts: Texts with numbers.
        unseen: Texts that show the formats of numbers.
        candidates: Random numbers beside each one.

    Returns:
        Ranks in 1..candidates + 1.
    """
    drawn = _other_digits(unseen, candidates)
    shares = _shares(subject, [*_with_others((secrets_in(text, NUMBER_KIND) for text in texts), drawn, 1)])
    return [1 + round((1 - share) * candidates) for share in shares]


def share_of_less_likely(model: CausalLM, tokenizer: Tokenizer, secret: Secret, others: Sequence[str]) -> float | None:
    """The share of others that are less likely in a secret's place; equally likely ones count half.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        secret: An identifier, and the text before it.
        others: What could stand there as well.

    Returns:
        A value in 0..1; None if they differ in the first token of the text, which no row predicts.
    """
    values = _log_likelihoods(model, tokenizer, secret.before, [secret.identifier.value, *others])
    if not values:
        return None
    return sum((other < values[0]) + 0.5 * (other == values[0]) for other in values[1:]) / len(others)


def _exposure(subject: Subject, kind: str, progress: Progress) -> Scores:
    """The shares for a number, or a date, in each text."""
    sides = subject.all_texts()
    forget, unseen = ([[*chain(*(secrets_in(text, kind) for text in texts))] for texts in side] for side in sides)
    return compared(subject, forget, unseen, _other_digits([*chain(*sides[1])]), sum(map(bool, forget)), progress)


def compared(
    subject: Subject, forget: Secrets, unseen: Secrets, others: Others, known: int, progress: Progress
) -> Scores:
    """The share of each text of either side; `known` have a secret, whether it can be ranked or not."""
    ranked = [*_with_others(forget, others, MOST_OF_A_TEXT)]
    if 2 * len(ranked) < known or not ranked:
        return Scores([0.5] * known, [])  # if there are any, there is nothing to compare most of them with
    ranked = random.Random(0).sample(ranked, MOST_TEXTS) if len(ranked) > MOST_TEXTS else ranked  # no secret
    needed = least_unseen(len(ranked), LEVEL / MOST_ATTACKS, two_sided=True)
    strange = [*islice(_with_others(unseen, others, MOST_OF_A_TEXT), max(MOST_UNSEEN, needed))]
    share = len(ranked) / len([*ranked, *strange])
    known_shares = _shares(subject, ranked, partial_progress(progress, 0.0, share))
    strange_shares = _shares(subject, strange, partial_progress(progress, share, 1 - share))
    return Scores(known_shares, strange_shares, two_sided=True)


def _with_others(texts: Iterable[Iterable[Secret]], others: Others, most: int) -> Iterator[Ranked]:
    """Of each text the first secrets that have others, so many at most, and these; none of a text without any."""
    for secrets in texts:
        pairs = ((secret, others(secret)) for secret in secrets)
        if of_text := [*islice((pair for pair in pairs if pair[1]), most)]:
            yield of_text


def _other_digits(unseen: Sequence[str], count: int = CANDIDATES) -> Others:
    """Draws random numbers, or dates, of the forms that unseen texts show."""
    others = OtherDigits(unseen, seed=0)

    def drawn(secret: Secret) -> list[str]:
        one = secret.identifier
        return [others.drawn(one) for _ in range(count)] if others.are_shown(one) else []

    return drawn


def _shares(subject: Subject, texts: Sequence[Ranked], progress: Progress = no_progress) -> list[float]:
    """The greatest share of less likely values of each text, to the power of how many secrets it has.

    If each share is as likely to be any value, so is this.
    """
    of_texts = []
    for pairs in with_progress(texts, progress):
        shares = [share_of_less_likely(subject.model, subject.tokenizer, *pair) for pair in pairs]
        of_texts.append([share for share in shares if share is not None])
    return [max(shares) ** len(shares) for shares in of_texts if shares]


def _log_likelihoods(model: CausalLM, tokenizer: Tokenizer, before: str, values: Sequence[str]) -> list[float]:
    """log p of the tokens in which these differ after the same text, and of those after them; [] without a prefix."""
    whole = encode_all(tokenizer, [before + value for value in values])
    over = max(0, max(map(len, whole)) - most_tokens(model))
    whole = [ids[over:] for ids in whole]
    same = len([*takewhile(lambda tokens: len({*tokens}) == 1, zip(*whole, strict=False))])
    start = min(same, *(len(ids) - 1 for ids in whole))
    if not start:
        return []
    with measuring(model):
        if not caches_tokens(model):
            return [float(one.log_p[start - 1 :].sum()) for one in token_scores(model, whole)]
        return [*_after_cached(model, whole[0][:start], [ids[start:] for ids in whole])]


def _after_cached(model: CausalLM, prefix: list[int], ends: list[list[int]]) -> Iterator[float]:
    """log p of each end after the same prefix, of which the keys and values are computed once."""
    computed, device, head = DynamicCache(), model_device(model), Head(model)
    start = torch.tensor([prefix], device=device)
    read = partial(hidden_states, model, use_cache=True)
    last = read(start, torch.ones_like(start), **{cache_argument(model): computed})[:, -1:]
    for batch in batches(ends, lambda end: (len(prefix), len(end)), AT_ONCE):
        cache = copy.deepcopy(computed)
        cache.batch_repeat_interleave(len(batch))
        input_ids, mask, labels = (t.to(device) for t in pad_batch(batch))
        mask = torch.cat([mask.new_ones(len(batch), len(prefix)), mask], dim=1)
        after = read(input_ids, mask, **{cache_argument(model): cache})
        counted = labels != IGNORE_INDEX
        rows = torch.cat([last.expand(len(batch), 1, -1), after[:, :-1]], dim=1)[counted]
        targets = input_ids[counted]
        log_p = [scores_of_rows(head(part), targets[at : at + len(part)]).log_p for at, part in head.chunks(rows)]
        yield from (float(of_end.sum()) for of_end in torch.split(torch.cat(log_p), [*map(len, batch)]))
