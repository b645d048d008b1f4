"""What changes on a page while people look at it: made once a second for all who may see the same, and sent to each."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable

SECONDS = 1.0  # between two makings of the same part


class LiveParts:
    """The parts that somebody waits for now."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._planned: dict[Hashable, asyncio.Task[str | None]] = {}
        self._made_at: dict[Hashable, float] = {}

    async def next(self, key: Hashable, make: Callable[[], Awaitable[str | None]]) -> str | None:
        """A part that is made after this call, by the first of those who wait for it.

        Args:
            key: What the part depends on: what is shown, and to whom.
            make: Makes it; its answer, or error, is the answer for all who wait.
        """
        task = self._planned.get(key)
        if task is None:
            task = self._planned[key] = asyncio.create_task(self._make(key, make))
        return await asyncio.shield(task)

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[str | None]]) -> str | None:
        try:
            await asyncio.sleep(max(0.0, self._made_at.get(key, 0.0) + SECONDS - time.monotonic()))
        finally:
            del self._planned[key]  # who comes from here on waits for the next one
        self._made_at[key] = time.monotonic()
        try:
            return await make()
        finally:
            if key not in self._planned:
                asyncio.get_running_loop().call_later(SECONDS, self._forget, key)

    def _forget(self, key: Hashable) -> None:
        """Forget a part that nobody has waited for since."""
        if key not in self._planned and time.monotonic() - self._made_at.get(key, 0.0) >= SECONDS:
            self._made_at.pop(key, None)
