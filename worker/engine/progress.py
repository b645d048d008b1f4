"""Progress callbacks: they take the fraction done, 0..1, and some the stage before it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

Progress: TypeAlias = Callable[[float], None]
StageProgress: TypeAlias = Callable[[str, float], None]
T = TypeVar("T")


def no_progress(fraction: float) -> None:
    """Ignore progress."""


def no_stage_progress(stage: str, fraction: float) -> None:
    """Ignore the progress of stages."""


def partial_progress(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part that begins at `start` and is `share` of the whole."""

    def report(fraction: float) -> None:
        progress(start + share * fraction)

    return report


def with_progress(items: Sequence[T], progress: Progress) -> Iterator[T]:
    """Yield the items, and report before each which share of them is done."""
    for done, item in enumerate(items):
        progress(done / len(items))
        yield item
