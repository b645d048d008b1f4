"""Near copies: the same text with small changes or without the address (MinHash, Broder 1997; rensa)."""

import struct

from rensa import RMinHash

from service.subjects.identifiers import Hasher, without_identifiers, words

SHINGLE = 5  # characters
BANDS, ROWS = 20, 6  # two texts share a band with probability 98 % at Jaccard 0.75, and 27 % at 0.5
MIN_JACCARD = 0.75
SEED = 42


def shingles(text: str) -> set[str]:
    """Every five consecutive characters of a text, with case and spacing normalised and identifiers removed."""
    plain = " ".join(words(without_identifiers(text)))
    return {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}


def bands(hasher: Hasher, text: str) -> list[int]:
    """Keyed hashes of the bands of a text's MinHash. Near copies very probably share at least one."""
    sketch = RMinHash(BANDS * ROWS, SEED)
    sketch.update(sorted(shingles(text)))
    values = sketch.digest()
    return [
        hasher.number("band", struct.pack(f">B{ROWS}I", band, *values[band * ROWS : (band + 1) * ROWS]))
        for band in range(BANDS)
    ]


def are_near_copies(one: set[str], other: set[str]) -> bool:
    """Whether the Jaccard index of two texts' shingles, computed exactly, is at least `MIN_JACCARD`."""
    return len(one & other) >= MIN_JACCARD * len(one | other)
