"""Exposure (Carlini et al., USENIX Security 2019): where a number ranks among random numbers of its format."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.attacks.scores import LEVEL, Scores, least_unseen
from worker.engine.attacks.subject import Subject
from worker.engine.data import IGNORE_INDEX, encode, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.identifiers import NUMBER
from worker.engine.metrics.caching import cache_argument, caches_tokens
from worker.engine.metrics.token_scores import token_scores
from worker.engine.types import CausalLM

CANDIDATES = 100  # random numbers beside each one
MOST_TEXTS = 32  # of each side; of the unseen ones more if there are few to forget
MOST_ATTACKS = 10  # that share a level
AT_ONCE = 34  # numbers
MIN_ALIKE = 3  # unseen numbers of a shape that show which of its digits never change


@dataclass(frozen=True, slots=True)
class Secret:
    """A number in a text: the text before it, and the number."""

    before: str
    number: str


def exposure(subject: Subject) -> Scores:
    """For each text with a number, the share of random numbers of its format that are less likely there.

    A number's shape is the number with each digit as 0. Digits that are the same in all unseen numbers of that shape
    belong to the format, and stay. If few unseen texts have the shape of some number, nobody knows its format, and
    there are too few unseen texts for this attack.
    """
    forget, unseen = ([s for text in side if (s := _secret(text))] for side in subject.texts())
    needed = least_unseen(len(forget), LEVEL / MOST_ATTACKS, two_sided=True) if forget else 0
    forget, unseen = forget[:MOST_TEXTS], unseen[: max(MOST_TEXTS, needed)]
    formats = formats_of_numbers([secret.number for secret in unseen])
    if any(shape(secret.number) not in formats for secret in forget):
        return Scores([0.5] * len(forget), [])  # there is a number, and nothing to compare it with
    return Scores(_shares(subject, forget, formats), _shares(subject, unseen, formats), two_sided=True)


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
    formats = formats_of_numbers([secret.number for text in unseen if (secret := _secret(text))])
    secrets = [secret for text in texts if (secret := _secret(text))]
    return [1 + round((1 - share) * candidates) for share in _shares(subject, secrets, formats, candidates)]


def _secret(text: str) -> Secret | None:
    """The first number of a text that some text stands before."""
    number = next((match for match in NUMBER.finditer(text) if match.start()), None)
    return Secret(text[: number.start()], number.group()) if number else None


def shape(number: str) -> str:
    """A number with each digit as 0."""
    return re.sub(r"\d", "0", number)


def formats_of_numbers(numbers: Sequence[str]) -> dict[str, str]:
    """Shape -> format: its constant digits, and ? for each digit that changes."""
    by_shape: dict[str, list[str]] = {}
    for number in numbers:
        by_shape.setdefault(shape(number), []).append(number)
    return {
        of_shape: "".join(digits[0] if len(set(digits)) == 1 else "?" for digits in zip(*alike, strict=True))
        for of_shape, alike in by_shape.items()
        if len(alike) >= MIN_ALIKE
    }


def _shares(
    subject: Subject, secrets: Sequence[Secret], formats: dict[str, str], candidates: int = CANDIDATES
) -> list[float]:
    """The share of less likely random numbers, for each secret whose format is known."""
    generator = random.Random(0)  # candidates, no secrets
    shares = []
    for secret in secrets:
        pattern = formats.get(shape(secret.number))
        if pattern is None or not encode(subject.tokenizer, secret.before.rstrip()):
            continue
        numbers = random_numbers(secret.number, pattern, candidates, generator)
        parts = (_log_likelihoods(subject, secret.before, part) for part in _parts([secret.number, *numbers]))
        true, *others = (value for part in parts for value in part)
        shares.append(sum((other < true) + 0.5 * (other == true) for other in others) / candidates)
    return shares


def random_numbers(number: str, pattern: str, count: int, generator: random.Random) -> list[str]:
    """Random numbers of a format, none of them the true one unless the format has no other."""
    numbers: list[str] = []
    while len(numbers) < count:
        drawn = re.sub(r"\?", lambda _: generator.choice("0123456789"), pattern)
        if drawn != number or "?" not in pattern:
            numbers.append(drawn)
    return numbers


def _parts(numbers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Numbers that are scored at once: each holds a copy of the keys and values of the text before it."""
    for start in range(0, len(numbers), AT_ONCE):
        yield numbers[start : start + AT_ONCE]


def _log_likelihoods(subject: Subject, before: str, numbers: Sequence[str]) -> list[float]:
    """log p of each number after the same text."""
    tokenizer, model = subject.tokenizer, subject.model
    prefix = encode(tokenizer, before.rstrip())  # a space at the end may become a part of the number's first token
    whole = [encode(tokenizer, before + number) for number in numbers]
    if any(ids[: len(prefix)] != prefix for ids in whole):
        raise ValueError("the tokens of the text change with the number after it")
    ends = [ids[len(prefix) :] for ids in whole]
    with measuring(model):
        if not caches_tokens(model):
            return [float(one.log_p[len(prefix) - 1 :].sum()) for one in token_scores(model, whole)]
        return _after_cached(model, prefix, ends)


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
