"""What a process hears from the database: news of jobs for those who wait, and that a key was revoked.

One LISTEN connection a process, one event a waiter.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg

from service.db import api_keys
from service.db.api_keys import Caller
from service.db.jobs import CHANNEL
from service.observability.logging import get_logger

logger = get_logger(__name__)
LOOK_ANYWAY_SECONDS = 10  # a notification can be lost while the connection is away
RECONNECT_SECONDS = 1
REMEMBER_SECONDS = 5


class Listener:
    """Turns PostgreSQL's notifications into wake-ups of the streams that wait."""

    def __init__(self, url: str) -> None:
        """Listen on the database at `url` once `run` runs."""
        self._url = url
        self._waiters: dict[UUID, set[asyncio.Event]] = {}
        self._callers: dict[bytes, tuple[float, Caller]] | None = None  # None: not listening, so nothing is remembered
        self._forgotten = 0.0

    async def run(self) -> None:
        """Listen until cancelled; a lost connection is made anew."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await connection.execute(f"LISTEN {api_keys.CHANNEL}")
                    self._callers = {}
                    async for notification in connection.notifies():
                        if notification.channel == api_keys.CHANNEL:
                            self.forget()
                        else:
                            self._wake(UUID(notification.payload))
            except psycopg.OperationalError:
                logger.warning("the listening connection is lost and made anew")
            finally:
                self._callers = None
            await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, job_id: UUID) -> None:
        for event in self._waiters.get(job_id, ()):
            event.set()

    def caller(self, key_hash: bytes) -> Caller | None:
        """Whose key that is, if it was asked for some seconds ago and none was revoked since."""
        seen, found = (self._callers or {}).get(key_hash, (0.0, None))
        return found if time.monotonic() - seen < REMEMBER_SECONDS else None

    def remember(self, key_hash: bytes, found: Caller, asked: float) -> None:
        """Whose key that is, as the database said at `asked` or later."""
        if self._callers is not None and asked > self._forgotten:
            self._callers[key_hash] = (asked, found)

    def forget(self) -> None:
        """A key was revoked: remember none of what was asked before now."""
        self._callers, self._forgotten = {}, time.monotonic()

    async def subscribe(self, job_id: UUID) -> AsyncIterator[None]:
        """Yield at once, then each time the job may have changed."""
        event = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(event)
        try:
            while True:
                yield
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), LOOK_ANYWAY_SECONDS)
                event.clear()
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
