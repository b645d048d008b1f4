"""Whether a deletion request would be accepted."""

import asyncio

import psycopg
from anyio import CapacityLimiter, to_thread
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service.db.session import Database

READY_SECONDS = 2.0
QUESTION = text(
    "SELECT CASE WHEN current_setting('transaction_read_only') = 'on' THEN 'read-only'"
    " WHEN home <> database_home() THEN 'moved' ELSE 'ok' END, EXISTS (SELECT FROM models) FROM log_home"
)


class Readiness:
    """Asks the database one question at a time, however many callers wait: a silent one holds one thread."""

    def __init__(self, db: Database) -> None:
        """Ask this database."""
        self._db, self._thread = db, CapacityLimiter(1)
        self._question: asyncio.Task[str] | None = None

    async def state(self) -> str:
        """Whether it takes requests, and if not, why.

        `ok`; `read-only`, if it has become a standby; `moved`, if it was one until now and was not reconciled yet;
        `away`, if it fails or is silent for READY_SECONDS.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(to_thread.run_sync(self._ask, limiter=self._thread))
        try:
            return await asyncio.wait_for(asyncio.shield(self._question), READY_SECONDS)
        except TimeoutError:
            return "away"

    def _ask(self) -> str:
        """Ask whether the database takes writes."""
        try:
            with self._db.reading() as session:
                state = str(session.scalar(QUESTION))
            if state == "read-only":
                self._db.engine.dispose()  # connections anew: another host of the URL may take writes
            return state
        except (SQLAlchemyError, psycopg.Error):
            return "away"
