"""The forget set: the sequences to forget and the request that each belongs to."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.data import text_windows
from worker.engine.types import Tokenizer

EVENLY = 60  # windows of a request are counted as if it had so many; many numbers divide it


@dataclass(frozen=True, slots=True)
class ForgetSet:
    """Sequences to forget and the request that each belongs to.

    Attributes:
        sequences: Token ids of every window of every record.
        request_ids: For each sequence, the index of its request.
        places: For each sequence, which window of its record it is, from 0.
    """

    sequences: list[list[int]]
    request_ids: list[int]
    places: list[int] = field(default_factory=list)

    @classmethod
    def build(cls, tokenizer: Tokenizer, texts: Sequence[str], request_ids: Sequence[int], length: int) -> "ForgetSet":
        """Cut texts into windows.

        Args:
            tokenizer: The model's tokenizer.
            texts: Texts to forget.
            request_ids: For each text the index of its request.
            length: Tokens a window holds, BOS included.

        Returns:
            The forget set.

        Raises:
            TooShort: A text has no token that the model predicts.
        """
        sequences: list[list[int]] = []
        sequence_request_ids: list[int] = []
        places: list[int] = []
        for text, request_id in zip(texts, request_ids, strict=True):
            windows = text_windows(tokenizer, text, length)
            sequences += windows
            sequence_request_ids += [request_id] * len(windows)
            places += range(len(windows))
        return cls(sequences, sequence_request_ids, places)

    @property
    def typical_places(self) -> list[int]:
        """Which windows of records there are, from 0, in proportion; each request counts alike."""
        of_request: dict[int, list[int]] = {}
        for request_id, place in zip(self.request_ids, self.places, strict=True):
            of_request.setdefault(request_id, []).append(place)
        some = (places[:: math.ceil(len(places) / EVENLY)] for places in of_request.values())
        return [places[i % len(places)] for places in some for i in range(EVENLY)]

    def only(self, requests: Sequence[int]) -> "ForgetSet":
        """The part that belongs to these requests."""
        indices = self.indices(requests)
        places = [self.places[i] for i in indices if self.places]
        return ForgetSet([self.sequences[i] for i in indices], [self.request_ids[i] for i in indices], places)

    def indices(self, requests: Sequence[int]) -> list[int]:
        """The indices of the sequences that belong to these requests."""
        wanted = set(requests)
        return [i for i, request_id in enumerate(self.request_ids) if request_id in wanted]

    def __add__(self, other: "ForgetSet") -> "ForgetSet":
        """The sequences of both sets; `request_ids` keep their numbers."""
        sequences, request_ids = [*self.sequences, *other.sequences], [*self.request_ids, *other.request_ids]
        return ForgetSet(sequences, request_ids, [*self.places, *other.places])

    @property
    def requests(self) -> list[int]:
        """The requests that have a sequence, each once, in order."""
        return list(dict.fromkeys(self.request_ids))

    def per_request_count(self) -> dict[int, int]:
        """The number of each request's sequences."""
        return dict(Counter(self.request_ids))

    def per_request(self, values: Sequence[float]) -> dict[int, float]:
        """The mean of each request's values; `values` has one for each sequence."""
        groups: dict[int, list[float]] = {}
        for request_id, value in zip(self.request_ids, values, strict=True):
            groups.setdefault(request_id, []).append(value)
        return {request_id: sum(group) / len(group) for request_id, group in groups.items()}
