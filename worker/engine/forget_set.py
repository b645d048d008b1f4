"""The forget set: whose text, cut into which sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.engine.data import text_windows


@dataclass(frozen=True, slots=True)
class ForgetSet:
    """Sequences to forget and the request that each belongs to.

    Attributes:
        sequences: Token ids of every window of every record.
        owners: For each sequence, the index of its request.
    """

    sequences: list[list[int]]
    owners: list[int]

    @classmethod
    def build(cls, tokenizer: Any, texts: Sequence[str], owners: Sequence[int], length: int) -> "ForgetSet":
        """Cut texts into windows.

        Args:
            tokenizer: The model's tokenizer.
            texts: Texts to forget.
            owners: For each text the index of its request.
            length: Tokens a window holds, BOS included.

        Returns:
            The forget set.

        Raises:
            TooShort: A text has no token that the model predicts.
        """
        sequences: list[list[int]] = []
        of: list[int] = []
        for text, owner in zip(texts, owners, strict=True):
            cut = text_windows(tokenizer, text, length)
            sequences += cut
            of += [owner] * len(cut)
        return cls(sequences, of)

    def only(self, requests: Sequence[int]) -> "ForgetSet":
        """The part that belongs to these requests."""
        keep = [i for i, owner in enumerate(self.owners) if owner in set(requests)]
        return ForgetSet([self.sequences[i] for i in keep], [self.owners[i] for i in keep])

    def __add__(self, other: "ForgetSet") -> "ForgetSet":
        """Both sets' sequences; owners keep their numbers."""
        return ForgetSet([*self.sequences, *other.sequences], [*self.owners, *other.owners])

    @property
    def requests(self) -> list[int]:
        """The requests that own a sequence, each once, in order."""
        return list(dict.fromkeys(self.owners))

    def per_request(self, values: Sequence[float]) -> dict[int, float]:
        """Mean of one value a sequence over each request's sequences."""
        groups: dict[int, list[float]] = {}
        for owner, value in zip(self.owners, values, strict=True):
            groups.setdefault(owner, []).append(value)
        return {owner: sum(group) / len(group) for owner, group in groups.items()}
