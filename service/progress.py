"""Steps of long work: whoever moves many bytes says so, and whoever must know that something moves hears it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


def step() -> None:
    """Something was done."""
    if listener := _listener.get():
        listener()


@contextmanager
def steps_heard(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` for each step of this thread in the block."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
