"""Near copies: the same text again, changed a little or without the address (MinHash, Broder 1997; rensa)."""

import struct

from rensa import RMinHash

from service.subjects.identifiers import Hasher, without_identifiers, words

SHINGLE = 5  # characters
BANDS, ROWS = 20, 6  # two texts alike to 0.75 share a band with a chance of 98 %, to 0.5 of 27 %
MIN_JACCARD = 0.75
SEED = 42


def shingles(text: str) -> set[str]:
    """Every five characters in a row of a text in one case and spacing, its identifiers left out."""
    plain = " ".join(words(without_identifiers(text)))
    return {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}


def bands(hasher: Hasher, text: str) -> list[int]:
    """Keyed hashes of the bands of a text's MinHash: near copies share at least one, most likely."""
    sketch = RMinHash(BANDS * ROWS, SEED)
    sketch.update(sorted(shingles(text)))
    values = sketch.digest()
    return [
        hasher.number("band", struct.pack(f">B{ROWS}I", band, *values[band * ROWS : (band + 1) * ROWS]))
        for band in range(BANDS)
    ]


def are_near_copies(one: set[str], other: set[str]) -> bool:
    """Whether the Jaccard index of two texts' shingles says that they are copies; exactly."""
    return len(one & other) >= MIN_JACCARD * len(one | other)
