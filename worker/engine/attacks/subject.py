"""What attacks work on: a model, the texts to forget, and never-seen texts of the same lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from worker.engine.metrics.token_scores import TokenScores, token_scores
from worker.engine.types import CausalLM, Tokenizer


@dataclass(frozen=True)
class Subject:
    """What attacks work on.

    Attributes:
        model: The model under test; an attack leaves it as it was.
        tokenizer: Its tokenizer.
        forget: The sequences to forget.
        unseen: Held-out sequences, cut by `cut_alike`.
        retain: Retain sequences, for attacks that train.
    """

    model: CausalLM
    tokenizer: Tokenizer
    forget: list[list[int]]
    unseen: list[list[int]]
    retain: list[list[int]]

    @cached_property
    def scores(self) -> tuple[list[TokenScores], list[TokenScores]]:
        """The token scores of the sequences to forget and of the unseen ones; several attacks read them."""
        return token_scores(self.model, self.forget), token_scores(self.model, self.unseen)

    def texts(self) -> tuple[list[str], list[str]]:
        """The texts of the sequences to forget and of the unseen ones."""
        decode = self.tokenizer.decode
        forget, unseen = (
            [str(decode(ids, skip_special_tokens=True)) for ids in side] for side in (self.forget, self.unseen)
        )
        return forget, unseen


def cut_alike(unseen: Sequence[list[int]], forget: Sequence[list[int]]) -> list[list[int]]:
    """Unseen sequences, none longer than the longest sequence to forget: a score depends on the length."""
    longest = max(map(len, forget), default=0)
    return [ids[:longest] for ids in unseen]
