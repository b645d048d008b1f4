"""Texts that differ from a text to forget in their numbers alone.

Distillation teaches the model what a reference says about one text. It would be less sure of what is near that text
than of unseen text. So it learns what the reference says about other numbers in the same place, too. And whoever
compares the true number with others must see no difference; so the training asks for that difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from worker.engine.data import decoded, encode
from worker.engine.metrics.token_scores import token_scores
from worker.engine.other_digits import OtherDigits, identifiers_with_digits
from worker.engine.types import CausalLM, Tokenizer

EACH, MOST, MOST_TOKENS = 8, 512, 65_536  # variants of a sequence, and of all together
TRIES = 32  # draws of a variant, until it is alike
MOST_BETWEEN = 2  # rows that stay the same, in a run of those that differ


@dataclass(frozen=True, slots=True)
class Variants:
    """Sequences with other numbers than those to forget.

    Attributes:
        sequences: Token ids.
        sources: For each of them the index of the sequence that it varies.
        alike: For each of them whether it differs from that sequence in tokens with digits alone, row by row. One whose
            numbers have more or fewer tokens is not alike: its rows are others. A sequence may have few that are alike,
            or none; then it is not compared.
        numbers: For each sequence that these vary, [T-1], whether the row predicts a token with a digit.
    """

    sequences: list[list[int]]
    sources: list[int]
    alike: list[bool]
    numbers: list[list[bool]]

    def number_tokens(self, sequences: Sequence[list[int]]) -> set[int]:
        """The tokens with a digit in the sequences that these vary."""
        rows = zip(sequences, self.numbers, strict=True)
        return {token for ids, numbers in rows for token, number in zip(ids[1:], numbers, strict=True) if number}

    def excess(self, model: CausalLM, forget: Sequence[list[int]]) -> Iterator[tuple[int, Tensor, float]]:
        """How much likelier than its variants' numbers each sequence's own numbers are to a model.

        Half of what could stand there is less likely than the median. Fewer are less likely than the mean, because the
        least likely ones are far off.

        Args:
            model: The model.
            forget: The sequences that these vary.

        Yields:
            tuple[int, Tensor, float]: For each run of rows whose tokens a variant changes a sequence's index, the rows
                [T-1], and the difference of the mean log-likelihood there from the median of the variants that are
                alike, in nats for a token.
        """
        variants: dict[int, list[list[int]]] = {}
        for ids, source, alike in zip(self.sequences, self.sources, self.alike, strict=True):
            if alike:
                variants.setdefault(source, []).append(ids)
        for source, others in variants.items():
            true, *scores = (one.log_p for one in token_scores(model, [forget[source], *others]))
            for rows in _runs((torch.tensor(others) != torch.tensor(forget[source])).any(dim=0)[1:]):
                of_others = torch.stack(scores)[:, rows].mean(dim=1)
                yield source, rows, float(true[rows].mean() - of_others.quantile(0.5))


def number_variants(
    tokenizer: Tokenizer, sequences: Sequence[list[int]], unseen: Sequence[list[int]], seed: int
) -> Variants:
    """Sequences with other numbers of the same format.

    Args:
        tokenizer: The model's tokenizer.
        sequences: Sequences to forget; those without a number have no variant.
        unseen: Held-out sequences, which show the formats of numbers.
        seed: Seeds the digits.

    Returns:
        At most MOST variants, of about MOST_TOKENS.
    """

    text_from = partial(decoded, tokenizer)
    others = OtherDigits([*map(text_from, unseen)], seed)
    texts = {
        i: (text, known)
        for i, ids in enumerate(sequences)
        if (known := identifiers_with_digits(text := text_from(ids)))
    }
    most = min(MOST, MOST_TOKENS // max(map(len, sequences), default=1))
    each = min(EACH, max(1, most // max(1, len(texts))))
    sources = ([*texts] * each)[:most]

    @cache
    def has_digit(token: int) -> bool:
        return any(map(str.isdecimal, text_from([token])))

    varied, alike = [], []
    for i in sources:
        for _ in range(TRIES):
            ids = encode(tokenizer, others.instead(*texts[i]))
            if is_alike := _differs_in(ids, sequences[i], has_digit):
                break
        varied.append(ids[: len(sequences[i])])
        alike.append(is_alike)
    return Variants(varied, sources, alike, [[has_digit(token) for token in ids[1:]] for ids in sequences])


def _runs(differs: Tensor) -> Iterator[Tensor]:
    """Each run of rows that differ, with few others between them: an identifier, as a rule."""
    rows = differs.nonzero().flatten().tolist()
    starts = [row for before, row in pairwise([-MOST_BETWEEN - 2, *rows]) if row - before > MOST_BETWEEN + 1]
    for start, end in pairwise([*starts, len(differs)]):
        within = torch.zeros_like(differs)
        within[start:end] = differs[start:end]
        yield within


def _differs_in(ids: Sequence[int], source: Sequence[int], may_differ: Callable[[int], bool]) -> bool:
    """Whether token ids differ from others of the same length, and where they do only in tokens that may.

    The first token counts for nothing, because no row predicts it.
    """
    different = [token for pair in zip(ids[1:], source[1:], strict=False) if pair[0] != pair[1] for token in pair]
    return len(ids) == len(source) and bool(different) and all(map(may_differ, different))
