"""How many held-out texts are also retain texts: the same text, or a near copy (MinHash, Broder 1997; rensa).

    h: held-out texts  b: retain texts of a chunk  p: permutations  n: bands

Retain texts are read once, in chunks. A held-out text takes less than a kilobyte of memory, whatever its length. Ten
thousand texts of each kind, of a thousand characters, took four seconds on two cores.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from service.domain.reference_texts import Overlap
from service.subjects.identifiers import words

SHINGLE = 5  # characters
BANDS, ROWS = 16, 16  # two texts share a band with probability 96 % at Jaccard 0.9, and 3 % at 0.67
MIN_JACCARD = 0.9  # estimated; forms that differ in a name or a number stay under it
SEED = 42
CHUNK = 1000  # texts
MAX_CANDIDATES = 64  # compared for each band, so that texts of one form do not all have to be compared
WEIGHTS = np.random.default_rng(SEED).integers(1, 2**63, ROWS, dtype=np.uint64)
Hashes: TypeAlias = NDArray[np.uint8]
BandKeys: TypeAlias = NDArray[np.uint64]


def read_stored_texts(path: Path) -> Iterator[str]:
    """The texts of a file of reference texts in storage."""
    with path.open(encoding="utf-8") as handle:
        yield from (json.loads(line)["text"] for line in handle)


def measure_overlap(retain: Iterable[str], heldout: Iterable[str]) -> Overlap:
    """Count the held-out texts that are also retain texts. Case, spacing and punctuation do not count."""
    texts = _HeldoutTexts(heldout)
    for chunk in _chunks(retain):
        texts.compare(chunk)
    return texts.overlap


def count_copies(heldout: Iterable[str]) -> int:
    """How many texts are the same as an earlier one in the file. Case, spacing and punctuation do not count.

    Near copies are not counted: texts of one long form, with other names, are distinct.
    """
    digests = [_digest(_normal(text)) for text in heldout]
    return len(digests) - len(set(digests))


class _HeldoutTexts:
    """The sketches of the held-out texts, and which of them were found among retain texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        sketches = [_sketch(chunk) for chunk in _chunks(texts)]
        self._digests = [digest for digests, _, _ in sketches for digest in digests]
        self._known, self._exact = set(self._digests), set[bytes]()
        self._hashes = np.concatenate([hashes for _, hashes, _ in sketches])  # [h, p]
        keys = np.concatenate([keys for _, _, keys in sketches]).T  # [n, h]
        self._order = np.argsort(keys, axis=1)
        self._sorted = np.take_along_axis(keys, self._order, axis=1)
        self._near = np.zeros(len(self._digests), dtype=bool)  # [h]

    def compare(self, retain: tuple[str, ...]) -> None:
        """Mark the held-out texts that are, or nearly are, among these retain texts."""
        digests, hashes, keys = _sketch(retain)
        self._exact |= self._known.intersection(digests)
        for order, ordered, wanted in zip(self._order, self._sorted, keys.T, strict=True):
            first, last = (np.searchsorted(ordered, wanted, side) for side in ("left", "right"))  # [b]
            for row in np.flatnonzero(last > first):
                candidates = order[first[row] : last[row]][:MAX_CANDIDATES]
                jaccard = (self._hashes[candidates] == hashes[row]).mean(axis=1)
                self._near[candidates[jaccard >= MIN_JACCARD]] = True

    @property
    def overlap(self) -> Overlap:
        """How many were found."""
        same = np.array([digest in self._exact for digest in self._digests])
        return {"exact": int(same.sum()), "near": int((self._near & ~same).sum())}


def _chunks(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The texts, some at a time."""
    remaining = iter(texts)
    return iter(lambda: tuple(islice(remaining, CHUNK)), ())


def _sketch(texts: tuple[str, ...]) -> tuple[list[bytes], Hashes, BandKeys]:
    """Of each text its digest, the low bytes of its MinHash [b, p], and the keys of its bands [b, n]."""
    normal = [_normal(text) for text in texts]
    values = np.array([_minhash(text) for text in normal], dtype=np.uint64)  # [b, p]
    keys = (values.reshape(-1, BANDS, ROWS) * WEIGHTS).sum(axis=2, dtype=np.uint64)
    digests = [_digest(text) for text in normal]
    return digests, values.astype(np.uint8), keys


def _normal(text: str) -> str:
    """The words of a text; the text itself if it has none."""
    return " ".join(words(text)) or unicodedata.normalize("NFC", text).strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _minhash(text: str) -> list[int]:
    """The MinHash of every five consecutive characters."""
    sketch = RMinHash(BANDS * ROWS, SEED)
    sketch.update(list({text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}))
    return list(sketch.digest())
