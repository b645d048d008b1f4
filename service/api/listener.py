"""Notifications from the database: a job changed, or an API key was revoked.

Each process has one LISTEN connection, and each waiting stream has one event.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg

from service.db import api_keys
from service.db.api_keys import Caller
from service.db.connection import parameters
from service.db.job_events import CHANNEL
from service.observability.logging import get_logger

logger = get_logger(__name__)
POLL_SECONDS = 10  # a stream looks at its job this often, because a notification can be lost with the connection
RECONNECT_SECONDS = 1
QUIET_SECONDS, ANSWER_SECONDS = 15, 5  # the server is asked after so long without a notification, and has so long
REMEMBER_SECONDS = 5
MAX_REMEMBERED = 10_000


class Listener:
    """Wakes waiting streams when PostgreSQL notifies, and remembers callers until an API key is revoked."""

    def __init__(self, url: str) -> None:
        """Take the database's URL. `run` connects to it."""
        self._url = url
        self._waiters: dict[UUID, set[asyncio.Event]] = {}
        self._callers: dict[bytes, tuple[float, Caller]] | None = None  # None: not listening, so nothing is remembered
        self._forgotten_at = 0.0

    async def run(self) -> None:
        """Listen until cancelled. Reconnect when the connection is lost."""
        while True:
            try:
                connecting = psycopg.AsyncConnection.connect(**parameters(self._url), autocommit=True)
                async with await connecting as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await connection.execute(f"LISTEN {api_keys.CHANNEL}")
                    self._callers = {}
                    while True:
                        async for notification in connection.notifies(timeout=QUIET_SECONDS):
                            if notification.channel == api_keys.CHANNEL:
                                self.forget_callers()
                            else:
                                self._wake_named(notification.payload)
                        await asyncio.wait_for(connection.execute("SELECT"), ANSWER_SECONDS)
            except (psycopg.OperationalError, TimeoutError):
                logger.warning("the listening connection is lost and made anew")
            finally:
                self._callers = None
            await asyncio.sleep(RECONNECT_SECONDS)

    def _wake_named(self, payload: str) -> None:
        """Wake the streams of the job that a notification names; every login may notify, so it may name none."""
        with contextlib.suppress(ValueError):
            self._wake(UUID(payload))

    def _wake(self, job_id: UUID) -> None:
        """Wake the streams of this job."""
        for event in self._waiters.get(job_id, ()):
            event.set()

    def remembered_caller(self, key_hash: bytes) -> Caller | None:
        """The caller with this key, if it was looked up within `REMEMBER_SECONDS` and no key was revoked since."""
        asked_at, caller = (self._callers or {}).get(key_hash, (0.0, None))
        return caller if time.monotonic() - asked_at < REMEMBER_SECONDS else None

    def remember_caller(self, key_hash: bytes, caller: Caller, asked_at: float) -> None:
        """Remember a caller whom the database named at `asked_at` or later, unless its access token expires soon."""
        expires_soon = caller.expires_at < time.time() + REMEMBER_SECONDS
        if self._callers is not None and asked_at > self._forgotten_at and not expires_soon:
            if len(self._callers) >= MAX_REMEMBERED:
                self._callers.clear()  # each access token is an entry, and a client may have any number of them
            self._callers[key_hash] = (asked_at, caller)

    def forget_callers(self) -> None:
        """Forget all callers, because a key was revoked. Answers to earlier questions are not remembered either.

        Every stream wakes and looks whether the key was its own.
        """
        self._callers = None if self._callers is None else {}
        self._forgotten_at = time.monotonic()
        for job_id in self._waiters:
            self._wake(job_id)

    async def subscribe(self, job_id: UUID, expires_at: float) -> AsyncIterator[None]:
        """Yield at once, then each time the job may have changed, a key was revoked, or at `expires_at` (Unix time).

        The subscriber looks whether its caller may see more.
        """
        event = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(event)
        try:
            while True:
                yield
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(POLL_SECONDS, max(0.0, expires_at - time.time())))
                event.clear()
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
