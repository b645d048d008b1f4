"""Exposure (Carlini et al., USENIX Security 2019): where an identifier ranks among others with random digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.attacks.scores import LEVEL, Scores, least_unseen
from worker.engine.attacks.subject import Subject
from worker.engine.data import IGNORE_INDEX, encode, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.identifiers import NUMBER_KIND, Identifier
from worker.engine.metrics.caching import cache_argument, caches_tokens
from worker.engine.metrics.token_scores import token_scores
from worker.engine.other_digits import OtherDigits, identifiers_with_digits
from worker.engine.types import CausalLM

CANDIDATES = 100  # with random digits, for all identifiers of a text
MOST_OF_A_TEXT = 5  # identifiers
MOST_TEXTS = 32  # of each side; of the unseen ones more if there are few to forget
MOST_ATTACKS = 10  # that share a level
AT_ONCE = 34  # candidates


@dataclass(frozen=True, slots=True)
class Secret:
    """An identifier in a text, and the text before it."""

    before: str
    identifier: Identifier


def exposure(subject: Subject) -> Scores:
    """For each text with identifiers, the mean share of others with random digits that are less likely there.

    An identifier is a number, a date of birth, a home address or an e-mail address, with digits. One of a form that few
    unseen texts show is left out. If a text with a number has none that is left, there are too few unseen texts for
    this attack.
    """
    texts = subject.texts()
    others = OtherDigits(texts[1], seed=0)
    forget, unseen = ([_comparable(text, others) for text in side] for side in texts)
    if None in forget:
        return Scores([0.5] * len(forget), [])  # there is a number, and nothing to compare it with
    known, strange = ([of_text for of_text in side if of_text] for side in (forget, unseen))
    needed = least_unseen(len(known), LEVEL / MOST_ATTACKS, two_sided=True) if known else 0
    sides = known[:MOST_TEXTS], strange[: max(MOST_TEXTS, needed)]
    of_known, of_strange = ([_mean_share(subject, of_text, others) for of_text in side] for side in sides)
    return Scores(of_known, of_strange, two_sided=True)


def number_ranks(subject: Subject, texts: Sequence[str], unseen: Sequence[str], candidates: int) -> list[int]:
    """Where the first number of each text ranks among random ones of its format by likelihood; 1 is the likeliest.

    A text without a number, or with one whose format no unseen text shows, has no rank.

    Args:
        subject: The model and its tokenizer.
        texts: Texts with numbers.
        unseen: Texts that show the formats of numbers.
        candidates: Random numbers beside each one.

    Returns:
        Ranks in 1..candidates + 1.
    """
    others = OtherDigits(unseen, seed=0)
    numbers = ((one for one in _secrets(text) if one.identifier.kind == NUMBER_KIND) for text in texts)
    secrets = [first for of_text in numbers if (first := next(of_text, None)) and others.are_shown(first.identifier)]
    return [1 + round((1 - _share(subject, secret, others, candidates)) * candidates) for secret in secrets]


def _secrets(text: str) -> list[Secret]:
    """The identifiers with digits in a text that some text stands before."""
    before = ((text[: one.start], one) for one in identifiers_with_digits(text))
    return [Secret(start, one) for start, one in before if start.strip()]


def _comparable(text: str, others: OtherDigits) -> list[Secret] | None:
    """The first identifiers of a text whose forms unseen texts show; None if it has a number, and none of these."""
    known = _secrets(text)
    left = [one for one in known if others.are_shown(one.identifier)][:MOST_OF_A_TEXT]
    return None if not left and any(one.identifier.kind == NUMBER_KIND for one in known) else left


def _mean_share(subject: Subject, secrets: Sequence[Secret], others: OtherDigits) -> float:
    """The mean share of the secrets of a text, which divide its candidates among themselves."""
    each = CANDIDATES // len(secrets)
    return sum(_share(subject, secret, others, each) for secret in secrets) / len(secrets)


def _share(subject: Subject, secret: Secret, others: OtherDigits, candidates: int) -> float:
    """The share of others that are less likely than a secret; equal ones count half."""
    values = [secret.identifier.value, *(others.drawn(secret.identifier) for _ in range(candidates))]
    true, *drawn = _log_likelihoods(subject, secret.before, values)
    return sum((other < true) + 0.5 * (other == true) for other in drawn) / candidates


def _log_likelihoods(subject: Subject, before: str, values: Sequence[str]) -> list[float]:
    """log p of the tokens in which these differ after the same text, and of those that follow."""
    model = subject.model
    whole = [encode(subject.tokenizer, before + value) for value in values]
    same = len([*takewhile(lambda tokens: len({*tokens}) == 1, zip(*whole, strict=False))])
    start = min(same, *(len(ids) - 1 for ids in whole))
    if not start:
        raise ValueError("the first token of the text changes with what follows it")
    with measuring(model):
        if not caches_tokens(model):
            return [float(one.log_p[start - 1 :].sum()) for one in token_scores(model, whole)]
        ends = [ids[start:] for ids in whole]
        parts = (ends[first : first + AT_ONCE] for first in range(0, len(ends), AT_ONCE))  # each copies what is cached
        return [value for part in parts for value in _after_cached(model, whole[0][:start], part)]


def _after_cached(model: CausalLM, prefix: list[int], ends: list[list[int]]) -> list[float]:
    """log p of each end after the same prefix, of which the keys and values are computed once."""
    cache = DynamicCache()
    argument, device = cache_argument(model), model_device(model)
    start = torch.tensor([prefix], device=device)
    first = model(input_ids=start, use_cache=True, **{argument: cache}).logits[:, -1]
    cache.batch_repeat_interleave(len(ends))
    input_ids, mask, labels = (t.to(device) for t in pad_batch(ends))
    mask = torch.cat([mask.new_ones(len(ends), len(prefix)), mask], dim=1)
    rest = model(input_ids=input_ids, attention_mask=mask, use_cache=True, **{argument: cache}).logits[:, :-1]
    log_p = torch.log_softmax(torch.cat([first.expand(len(ends), 1, -1), rest], dim=1).float(), dim=-1)
    at_token = log_p.gather(-1, input_ids[..., None]).squeeze(-1).masked_fill(labels == IGNORE_INDEX, 0.0)
    return at_token.double().sum(-1).tolist()
