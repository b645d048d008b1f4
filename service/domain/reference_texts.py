"""Reference texts: how much of the held-out text may be retain text as well.

Held-out text stands for what the model has never seen: it sets the thresholds, and perplexity is measured on it.
Training works on retain text. A threshold from text that was trained on is too easy to keep. Twenty copies of one text
set a threshold as badly as one text does.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from service.domain.attacks import TWO_SIDED, AttackName, Effect

MAX_SHARE = 0.01  # of the held-out texts; real corpora have some texts twice
MAX_COPIES = 0.05  # of the held-out texts, that are copies of others
UNSEEN_AN_ATTACK = 40  # that a single request needs beside it: of 1 in n + 1 ranks, at half of 0.05 / attacks
UNLIKE = 0.1  # likeness under which held-out and retain texts are of two languages or kinds


class Overlap(TypedDict):
    """How many held-out texts are also retain texts: as the same text, and as near copies."""

    exact: int
    near: int


class ReferenceTexts(TypedDict):
    """Retain or held-out text in storage.

    Held-out text has its overlap with retain text; a model of an earlier release gets it with its next batch. It has
    its likeness to retain text (None: too few texts to say), if this release took it.
    """

    sha256: str
    records: int
    overlap: NotRequired[Overlap]
    likeness: NotRequired[float | None]


def overlaps_too_much(overlap: Overlap, heldout: int) -> bool:
    """Whether more than a hundredth of so many held-out texts are also retain texts."""
    return overlap["exact"] + overlap["near"] > MAX_SHARE * heldout


def few_warning(heldout: int, effects: Mapping[AttackName, Effect], learned: int = 0) -> str | None:
    """What to say of so few held-out texts if an attack blocks; None if they suffice.

    Args:
        heldout: How many there are.
        effects: What each attack may do. A test with two sides needs twice as many.
        learned: How many a reference learns, so that no attack compares with them.
    """
    sides = max((1 + (name in TWO_SIDED) for name, effect in effects.items() if effect == "block"), default=0)
    needed = UNSEEN_AN_ATTACK * sides * sum(effect != "off" for effect in effects.values()) - 1 + learned
    if not sides or heldout >= needed:
        return None
    return (
        f"For a job of a single request attacks that block need at least {needed} held-out texts; there are {heldout}."
        " Such a job may end with heldout_too_few or attack_not_run. Two requests need far fewer."
    )


def unlike_warning(likeness: float | None) -> str | None:
    """What to say of held-out texts that are this like retain texts; None if they may be of one kind."""
    if likeness is None or likeness >= UNLIKE:
        return None
    return (
        "The held-out texts are of another language or kind than the retain texts. Thresholds hold for texts of their"
        " own kind alone: check that they are like the texts that people will ask to delete."
    )
