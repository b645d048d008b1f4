"""What attacks work on: a model, the texts to forget, and never-seen texts of the same lengths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from worker.engine.attacks.scores import FEWEST_UNSEEN
from worker.engine.data import decoded
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.token_scores import TokenScores, token_scores
from worker.engine.types import CausalLM, Tokenizer

MOST_REQUESTS = 256  # that are attacked
CUT_BELOW = 0.75  # of the length of an unseen text


@dataclass(frozen=True)
class Subject:
    """What attacks work on.

    Attributes:
        model: The model under test; an attack leaves it as it was.
        tokenizer: Its tokenizer.
        forget: The sequences to forget, one of each request (`one_of_each`).
        unseen: Held-out sequences, made alike in length by `cut_alike`.
        retain: Retain sequences, for attacks that train.
        neighbours: Retain sequences that are most like these texts of either side, for the same.
        requests: All windows of each of these requests, for attacks that look for something in them.
        spare: More held-out sequences, for attacks that apply to few texts.
        length: Tokens that a window holds; a shorter one ends where its text ends.
    """

    model: CausalLM
    tokenizer: Tokenizer
    forget: list[list[int]]
    unseen: list[list[int]]
    retain: list[list[int]]
    neighbours: list[list[int]] = field(default_factory=list)
    requests: list[list[list[int]]] = field(default_factory=list)
    spare: list[list[int]] = field(default_factory=list)
    length: int = 0

    @cached_property
    def scores(self) -> tuple[list[TokenScores], list[TokenScores]]:
        """The token scores of the sequences to forget and of the unseen ones; several attacks read them."""
        return token_scores(self.model, self.forget), token_scores(self.model, self.unseen)

    def accuracies(self) -> tuple[list[float], list[float]]:
        """MA of the sequences to forget and of the unseen ones, as the model is now."""
        values = [accuracy(row) for row in token_matches(self.model, [*self.forget, *self.unseen])]
        return values[: len(self.forget)], values[len(self.forget) :]

    def texts(self) -> tuple[list[str], list[str]]:
        """The texts of the sequences to forget and of the unseen ones."""
        return [*map(self.text, self.forget)], [*map(self.text, self.unseen)]

    def all_texts(self) -> tuple[list[list[str]], list[list[str]]]:
        """The texts of all windows of each request, and of each unseen sequence, the spare ones included.

        After the last word of a text there is a full stop on a line of its own, so that nothing looks cut there.
        """

        def with_end(ids: Sequence[int]) -> str:
            return f"{self.text(ids)}\n." if len(ids) < self.length else self.text(ids)

        requests = self.requests or [[ids] for ids in self.forget]
        return [[*map(with_end, windows)] for windows in requests], [
            [self.text(ids)] for ids in [*self.unseen, *self.spare]
        ]

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


def one_of_each(forget: ForgetSet, seed: int) -> list[list[int]]:
    """A random window of each request, of MOST_REQUESTS random ones: samples that do not depend on each other."""
    return [windows[0] for windows in windows_of_each(forget, seed)]


def cut_alike(unseen: Sequence[list[int]], forget: Sequence[list[int]], seed: int = 0) -> list[list[int]]:
    """Unseen sequences, each cut to the length of a random sequence to forget: a score depends on the length.

    Long ones get the long lengths. One that is only a little longer stays whole, because the end of a text is easier to
    guess than its middle.
    """
    lengths = _drawn_lengths(unseen, forget, seed)
    return [*map(_cut, unseen, lengths)]


def long_enough(
    unseen: Sequence[list[int]], forget: Sequence[list[int]], seed: int = 0
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """The sequences to forget and the unseen ones, alike in length, and the unseen ones that are too short for it.

    Where fewer than FEWEST_UNSEEN unseen sequences are as long as one to forget, that one is cut.
    """
    longest = sorted(map(len, unseen))[-FEWEST_UNSEEN:]
    forget = [_cut(ids, longest[0]) for ids in forget] if longest else [*forget]
    pairs = [*zip(unseen, _drawn_lengths(unseen, forget, seed), strict=True)]
    alike = [_cut(*pair) for pair in pairs if not _is_short(*pair)]
    return forget, alike, [ids for ids, length in pairs if _is_short(ids, length)]


def _cut(ids: list[int], length: int) -> list[int]:
    """A sequence of this length, if it is much longer."""
    return ids[:length] if length < CUT_BELOW * len(ids) else ids


def _is_short(ids: list[int], length: int) -> bool:
    """Whether a sequence is much shorter than this."""
    return len(ids) < CUT_BELOW * length


def _drawn_lengths(unseen: Sequence[list[int]], forget: Sequence[list[int]], seed: int) -> list[int]:
    """For each unseen sequence the length of a random sequence to forget, the longest for the longest."""
    lengths, draw = [len(ids) for ids in forget], random.Random(seed)  # no secret
    drawn = sorted(draw.choices(lengths, k=len(unseen))) if lengths else sorted(map(len, unseen))
    by_length = sorted(range(len(unseen)), key=lambda index: len(unseen[index]))
    return [length for _, length in sorted(zip(by_length, drawn, strict=True))]
