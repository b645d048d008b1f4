"""Whether two sets of texts are of one kind: one language, one sort of text. No model takes part.

    f: features  n: texts

A text's features are counts of three bytes in a row, weighted by how rare they are. Texts of one kind have a nearest
retain text as near as retain texts have among themselves.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

FEATURES = 4093  # a prime
MOST_READ, MOST_COMPARED = 20_000, 400  # texts
BEGINNING = 400  # characters: features of texts of very different lengths differ
FEWEST = 20  # texts; fewer show no kind
Matrix = NDArray[np.float64]


def likeness(retain: Iterable[str], heldout: Iterable[str]) -> float | None:
    """How like retain texts the held-out texts are.

    Args:
        retain: Retain texts; the first of them are read.
        heldout: Held-out texts, likewise.

    Returns:
        The probability that a held-out text is nearer to some retain texts than another retain text is: 0.5 if all are
        of one kind, 0 if no held-out text is as near. None if there are too few texts.
    """
    draw = random.Random(0)  # no secret
    beginnings = ((text[:BEGINNING] for text in texts) for texts in (retain, heldout))
    drawn = [list(dict.fromkeys(islice(texts, MOST_READ))) for texts in beginnings]  # a text's copy is near to it
    drawn = [draw.sample(texts, min(MOST_COMPARED, len(texts))) for texts in drawn]
    if min(map(len, drawn)) < FEWEST:
        return None
    features = _features([*drawn[0], *drawn[1]])
    kept, unseen = np.split(features, [len(drawn[0])])
    reference, others = np.split(kept, [len(kept) // 2])
    nearest, wanted = ((side @ reference.T).max(axis=1) for side in (unseen, others))
    return float(((nearest[:, None] > wanted) + 0.5 * (nearest[:, None] == wanted)).mean())


def _features(texts: Sequence[str]) -> Matrix:
    """The features of texts [n, f], of length 1."""
    counts = np.stack([_counts(text) for text in texts])
    rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0)))
    weighted = np.log1p(counts) * rarity
    lengths = np.linalg.norm(weighted, axis=1, keepdims=True)
    features: Matrix = weighted / np.maximum(lengths, np.finfo(np.float64).tiny)
    return features


def _counts(text: str) -> Matrix:
    """How often each feature occurs in a text [f]."""
    octets = np.frombuffer(f"  {text.lower()} ".encode(), dtype=np.uint8).astype(np.int64)
    keys = (octets[:-2] * 65_536 + octets[1:-1] * 256 + octets[2:]) % FEATURES
    return np.bincount(keys, minlength=FEATURES).astype(np.float64)
