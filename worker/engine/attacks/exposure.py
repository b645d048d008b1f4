"""Exposure (Carlini et al., USENIX Security 2019): where an identifier ranks among others with random digits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.attacks.scores import LEVEL, Scores, least_unseen
from worker.engine.attacks.subject import Subject
from worker.engine.data import IGNORE_INDEX, encode, most_tokens, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.head import Head, hidden_states
from worker.engine.identifiers import DATE_OF_BIRTH, NUMBER_KIND, Identifier
from worker.engine.metrics.caching import cache_argument, caches_tokens
from worker.engine.metrics.token_scores import scores_of_rows, token_scores
from worker.engine.other_digits import OtherDigits, identifiers_with_digits
from worker.engine.types import CausalLM, Tokenizer

CANDIDATES = 100  # random ones beside each identifier
MOST_TEXTS = 32  # of each side; of the unseen ones more if there are few to forget
MOST_ATTACKS = 10  # that share a level
AT_ONCE = 34  # candidates


@dataclass(frozen=True, slots=True)
class Secret:
    """An identifier in a text, and the text before it."""

    before: str = field(repr=False)
    identifier: Identifier


def exposure(subject: Subject) -> Scores:
    """For each text with a number, the share of random numbers of its format that are less likely there.

    If few unseen texts show the format of some number, nobody knows it, and there are too few unseen texts for this
    attack (`worker.engine.other_digits`).
    """
    return _exposure(subject, NUMBER_KIND)


def exposure_dates(subject: Subject) -> Scores:
    """The same for dates of birth, among random dates of their form."""
    return _exposure(subject, DATE_OF_BIRTH)


def secrets_in(text: str, kind: str) -> Iterator[Secret]:
    """The identifiers of a kind in a text that have digits, and some text before them."""
    for one in identifiers_with_digits(text):
        if one.kind == kind and text[: one.start].strip():
            yield Secret(text[: one.start], one)


def number_ranks(subject: Subject, texts: Sequence[str], unseen: Sequence[str], candidates: int) -> list[int]:
    """Where the number of each text ranks among random ones of its format by likelihood; 1 is the likeliest.

    A text without a number, or with one whose format no unseen text shows, has no rank.

    Args:
        subject: The model and its tokenizer.
        texts: Texts with numbers.
        unseen: Texts that show the formats of numbers.
        candidates: Random numbers beside each one.

    Returns:
        Ranks in 1..candidates + 1.
    """
    firsts = [first for text in texts if (first := next(secrets_in(text, NUMBER_KIND), None))]
    return [
        1 + round((1 - share) * candidates) for share in _shares(subject, firsts, OtherDigits(unseen, 0), candidates)
    ]


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


def _exposure(subject: Subject, kind: str) -> Scores:
    """The shares for the first identifier of a kind in each text."""
    texts = subject.texts()
    forget, unseen = ([first for text in side if (first := next(secrets_in(text, kind), None))] for side in texts)
    needed = least_unseen(len(forget), LEVEL / MOST_ATTACKS, two_sided=True) if forget else 0
    forget, unseen = forget[:MOST_TEXTS], unseen[: max(MOST_TEXTS, needed)]
    others = OtherDigits(texts[1], seed=0)
    if not all(others.are_shown(secret.identifier) for secret in forget):
        return Scores([0.5] * len(forget), [])  # there is one, and nothing to compare it with
    return Scores(_shares(subject, forget, others), _shares(subject, unseen, others), two_sided=True)


def _shares(
    subject: Subject, known: Sequence[Secret], others: OtherDigits, candidates: int = CANDIDATES
) -> list[float]:
    """The share of less likely random ones, for each secret whose form is shown."""
    shown = [secret for secret in known if others.are_shown(secret.identifier)]
    drawn = ([others.drawn(secret.identifier) for _ in range(candidates)] for secret in shown)
    pairs = zip(shown, drawn, strict=True)
    shares = (share_of_less_likely(subject.model, subject.tokenizer, *pair) for pair in pairs)
    return [share for share in shares if share is not None]


def _log_likelihoods(model: CausalLM, tokenizer: Tokenizer, before: str, values: Sequence[str]) -> list[float]:
    """log p of the tokens in which these differ after the same text, and of those after them; [] without a prefix."""
    whole = [encode(tokenizer, before + value) for value in values]
    over = max(0, max(map(len, whole)) - most_tokens(model))
    whole = [ids[over:] for ids in whole]
    same = len([*takewhile(lambda tokens: len({*tokens}) == 1, zip(*whole, strict=False))])
    start = min(same, *(len(ids) - 1 for ids in whole))
    if not start:
        return []
    with measuring(model):
        if not caches_tokens(model):
            return [float(one.log_p[start - 1 :].sum()) for one in token_scores(model, whole)]
        ends = [ids[start:] for ids in whole]
        parts = (ends[first : first + AT_ONCE] for first in range(0, len(ends), AT_ONCE))  # each copies what is cached
        return [value for part in parts for value in _after_cached(model, whole[0][:start], part)]


def _after_cached(model: CausalLM, prefix: list[int], ends: list[list[int]]) -> list[float]:
    """log p of each end after the same prefix, of which the keys and values are computed once."""
    cache, device = DynamicCache(), model_device(model)
    cached = {"use_cache": True, cache_argument(model): cache}
    start = torch.tensor([prefix], device=device)
    last = hidden_states(model, start, torch.ones_like(start), **cached)[:, -1:]
    cache.batch_repeat_interleave(len(ends))
    input_ids, mask, labels = (t.to(device) for t in pad_batch(ends))
    mask = torch.cat([mask.new_ones(len(ends), len(prefix)), mask], dim=1)
    hidden = torch.cat([last.expand(len(ends), 1, -1), hidden_states(model, input_ids, mask, **cached)[:, :-1]], dim=1)
    counted, head = labels != IGNORE_INDEX, Head(model)
    rows, targets = hidden[counted], input_ids[counted]
    log_p = [scores_of_rows(head(part), targets[at : at + len(part)]).log_p for at, part in head.chunks(rows)]
    return [float(of_end.sum()) for of_end in torch.split(torch.cat(log_p), [*map(len, ends)])]
