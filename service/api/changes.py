"""Who waits for news of a job: one LISTEN connection a process, one event a waiter."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg

from service.db.jobs import CHANNEL

log = logging.getLogger(__name__)
LOOK_ANYWAY_SECONDS = 10  # a notification can be lost while the connection is away
RECONNECT_SECONDS = 1


class Changes:
    """Turns PostgreSQL's notifications into wake-ups of the streams that wait."""

    def __init__(self, url: str) -> None:
        """Listen on the database at `url` once `run` runs."""
        self._url = url
        self._waiters: dict[UUID, set[asyncio.Event]] = {}

    async def run(self) -> None:
        """Listen until cancelled; a lost connection is made anew."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    async for notification in connection.notifies():
                        self._wake(UUID(notification.payload))
            except psycopg.OperationalError:
                log.warning("the listening connection is lost and made anew")
            await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, job_id: UUID) -> None:
        for event in self._waiters.get(job_id, ()):
            event.set()

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
