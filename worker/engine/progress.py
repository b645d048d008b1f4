"""Progress callbacks: they take the fraction done, 0..1, and some the stage before it."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[float], None]
StageProgress: TypeAlias = Callable[[str, float], None]


def no_progress(fraction: float) -> None:
    """Ignore progress."""


def no_stage_progress(stage: str, fraction: float) -> None:
    """Ignore the progress of stages."""


def partial_progress(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part that begins at `start` and is `share` of the whole."""

    def report(fraction: float) -> None:
        progress(start + share * fraction)

    return report
