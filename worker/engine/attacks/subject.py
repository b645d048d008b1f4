"""What attacks work on: a model, the texts to forget, and never-seen texts of the same lengths."""

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from worker.engine.attacks.scores import FEWEST_UNSEEN
from worker.engine.data import chunks, decoded
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.token_scores import BATCH, TokenScores, token_scores
from worker.engine.progress import Progress, no_progress, with_progress
from worker.engine.types import CausalLM, Tokenizer

T = TypeVar("T")
MOST_REQUESTS = 256  # that are attacked
CUT_BELOW = 0.75  # of the length of an unseen text


@dataclass(frozen=True)
class Subject:
    """What attacks work on.

    Attributes:
        model: The model under test; an attack leaves it as it was.
        tokenizer: Its tokenizer.
        forget: The sequences to forget, one of each request.
        unseen: Held-out sequences of the same lengths.
        retain: Retain sequences, for attacks that train.
        neighbours: Retain sequences that are most like these texts of either side, for the same.
        requests: All windows of each of these requests, for attacks that look for something in them.
        heldout: Uncut held-out sequences, and more of them, for the same.
        length: Tokens that a window holds; a shorter one ends where its text ends.
    """

    model: CausalLM
    tokenizer: Tokenizer
    forget: list[list[int]]
    unseen: list[list[int]]
    retain: list[list[int]]
    neighbours: list[list[int]] = field(default_factory=list)
    requests: list[list[list[int]]] = field(default_factory=list)
    heldout: list[list[int]] = field(default_factory=list)
    length: int = 0
    _scores: list[TokenScores] = field(default_factory=list, init=False, repr=False, compare=False)

    def scores(self, progress: Progress = no_progress) -> tuple[list[TokenScores], list[TokenScores]]:
        """The token scores of the sequences to forget and of the unseen ones, measured once for several attacks."""
        if not self._scores:
            self._scores.extend(self._of_each(partial(token_scores, self.model), progress))
        return self._sides(self._scores)

    def accuracies(self, progress: Progress = no_progress) -> tuple[list[float], list[float]]:
        """MA of the sequences to forget and of the unseen ones, as the model is now."""
        matches = self._of_each(partial(token_matches, self.model), progress)
        return self._sides([accuracy(row) for row in matches])

    def _of_each(self, measure: Callable[[list[list[int]]], list[T]], progress: Progress) -> list[T]:
        """What is measured of each sequence of both sides, a batch at a time."""
        batches = [*chunks([*self.forget, *self.unseen], BATCH)]
        return [value for batch in with_progress(batches, progress) for value in measure(batch)]

    def _sides(self, values: list[T]) -> tuple[list[T], list[T]]:
        return values[: len(self.forget)], values[len(self.forget) :]

    def texts(self) -> tuple[list[str], list[str]]:
        """The texts of the sequences to forget and of the unseen ones."""
        return [*map(self.text, self.forget)], [*map(self.text, self.unseen)]

    def all_texts(self) -> tuple[list[list[str]], list[list[str]]]:
        """The texts of all windows of each request, and of each held-out sequence.

        After the last word of a text there is a full stop on a line of its own, so that nothing looks cut there.
        """
        requests = self.requests or [[ids] for ids in self.forget]
        sides = requests, [[ids] for ids in self.heldout or self.unseen]
        forget, unseen = ([[*map(self._with_end, windows)] for windows in side] for side in sides)
        return forget, unseen

    def _with_end(self, ids: Sequence[int]) -> str:
        return f"{self.text(ids)}\n." if len(ids) < self.length else self.text(ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a sequence."""
        return decoded(self.tokenizer, ids)


def windows_of_each(forget: ForgetSet, seed: int) -> list[list[list[int]]]:
    """The windows of each request, of MOST_REQUESTS random ones, each request's in random order."""
    draw = random.Random(seed)  # no secret
    windows: dict[int, list[list[int]]] = {}
    for ids, request_id in zip(forget.sequences, forget.request_ids, strict=True):
        windows.setdefault(request_id, []).append(ids)
    shuffled = [draw.sample(of_request, len(of_request)) for of_request in windows.values()]
    return shuffled if len(shuffled) <= MOST_REQUESTS else draw.sample(shuffled, MOST_REQUESTS)


def cut_alike(unseen: Sequence[list[int]], forget: Sequence[list[int]], seed: int = 0) -> list[list[int]]:
    """Unseen sequences, each cut to the length of a random sequence to forget: a score depends on the length.

    Long ones get the long lengths. One that is only a little longer stays whole, because the end of a text is easier to
    guess than its middle.
    """
    lengths = [len(ids) for ids in forget] or [len(ids) for ids in unseen]
    drawn = sorted(random.Random(seed).choices(lengths, k=len(unseen)))  # no secret
    by_length = sorted(range(len(unseen)), key=lambda index: len(unseen[index]))
    return [_cut(unseen[index], length) for index, length in sorted(zip(by_length, drawn, strict=True))]


def alike(
    unseen: Sequence[list[int]], forget: Sequence[list[int]], needed: int, seed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences to forget and unseen ones, cut so that both have the same lengths, each as often.

    Of the unseen ones the longest are taken, as many as have these lengths. If fewer than `needed` are as long as a
    sequence to forget, or fewer than FEWEST_UNSEEN, that one is cut, to a half of the longest one at least.

    Args:
        unseen: Held-out sequences.
        forget: Sequences to forget.
        needed: How many unseen ones the tests need.
        seed: Draws the lengths.

    Returns:
        (the sequences to forget, the unseen ones).
    """
    longest_first = sorted(range(len(unseen)), key=lambda index: -len(unseen[index]))
    lengths = [len(unseen[index]) for index in longest_first]
    longest = max(map(len, forget), default=0)
    limits = (lengths[count - 1] for count in (needed, FEWEST_UNSEEN) if 0 < count <= len(lengths))
    limit = next((length for length in limits if 2 * length >= longest), longest)
    forget = [_cut(ids, limit) for ids in forget]
    drawn = random.Random(seed).choices([len(ids) for ids in forget] or [0], k=len(unseen))  # no secret

    def too_short(count: int) -> bool:
        wanted = sorted(drawn[:count], reverse=True)
        return any(has < CUT_BELOW * wants for has, wants in zip(lengths, wanted, strict=False))

    count = bisect_left(range(1, 1 + len(unseen)), True, key=too_short)
    taken = [unseen[index] for index in sorted(longest_first[:count])]
    return forget, cut_alike(taken, forget, seed)  # which draws the same lengths


def _cut(ids: list[int], length: int) -> list[int]:
    """A sequence of this length, if it is much longer."""
    return ids[:length] if length < CUT_BELOW * len(ids) else ids
