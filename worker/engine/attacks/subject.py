"""What attacks work on: a model, the texts to forget, and never-seen texts of the same lengths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
        unseen: Held-out sequences, cut by `cut_alike`.
        retain: Retain sequences, for attacks that train.
        neighbours: Retain sequences that are most like these texts of either side, for the same.
    """

    model: CausalLM
    tokenizer: Tokenizer
    forget: list[list[int]]
    unseen: list[list[int]]
    retain: list[list[int]]
    neighbours: list[list[int]] = field(default_factory=list)

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

    def text(self, ids: Sequence[int]) -> str:
        """The text of a sequence."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def one_of_each(forget: ForgetSet, seed: int) -> list[list[int]]:
    """A random window of each request, of MOST_REQUESTS random ones: samples that do not depend on each other."""
    draw = random.Random(seed)  # no secret
    windows: dict[int, list[list[int]]] = {}
    for ids, request_id in zip(forget.sequences, forget.request_ids, strict=True):
        windows.setdefault(request_id, []).append(ids)
    drawn = [draw.choice(of_request) for of_request in windows.values()]
    return drawn if len(drawn) <= MOST_REQUESTS else draw.sample(drawn, MOST_REQUESTS)


def cut_alike(unseen: Sequence[list[int]], forget: Sequence[list[int]], seed: int = 0) -> list[list[int]]:
    """Unseen sequences, each cut to the length of a random sequence to forget: a score depends on the length.

    One that is only a little longer stays whole, because the end of a text is easier to guess than its middle.
    """
    lengths, draw = [len(ids) for ids in forget], random.Random(seed)  # no secret
    drawn = [draw.choice(lengths) if lengths else len(ids) for ids in unseen]
    return [ids[:length] if length < CUT_BELOW * len(ids) else ids for ids, length in zip(unseen, drawn, strict=True)]
