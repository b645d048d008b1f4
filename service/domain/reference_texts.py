"""Reference texts: how much of the held-out text may be retain text as well.

Held-out text stands for what the model has never seen: it sets the thresholds, and perplexity is measured on it.
Training works on retain text. A threshold from text that was trained on is too easy to keep.
"""

from typing import TypedDict

MAX_SHARE = 0.01  # of the held-out texts; real corpora have some texts twice


class Overlap(TypedDict):
    """How many held-out texts are also retain texts: as the same text, and as near copies."""

    exact: int
    near: int


def overlaps_too_much(overlap: Overlap, heldout: int) -> bool:
    """Whether more than a hundredth of so many held-out texts are also retain texts."""
    return overlap["exact"] + overlap["near"] > MAX_SHARE * heldout
