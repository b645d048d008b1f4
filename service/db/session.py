"""The engine, and the one place that commits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from service.failpoints import reach

DRIVER = "postgresql+psycopg"
PING_AFTER = 1.0  # seconds
POOL_SECONDS = 5.0  # whoever finds no connection free for so long is told to come again
# A process that is frozen between BEGIN and COMMIT would hold its locks, the log's among them, for ever.
OPTIONS = "-c timezone=UTC -c lock_timeout=10000 -c statement_timeout=60000 -c idle_in_transaction_session_timeout=5000"


def sqlalchemy_url(url: str) -> str:
    """A `postgresql://` URL with the driver that is installed."""
    return url.replace("postgresql://", f"{DRIVER}://", 1).replace("postgres://", f"{DRIVER}://", 1)


class Database:
    """A pool of connections and transactions on it."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        """Connect lazily to `url`; parameters never appear in errors or logs."""
        self.engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_SECONDS,
            hide_parameters=True,
            connect_args={"options": OPTIONS},
            isolation_level="AUTOCOMMIT",  # as most of what is asked is one statement; transactions say otherwise
            skip_autocommit_rollback=True,
        )
        event.listen(self.engine, "checkin", _stamp)
        event.listen(self.engine, "checkout", _ping)
        several = self.engine.execution_options(isolation_level="READ COMMITTED")
        self._sessions = sessionmaker(several, expire_on_commit=False)
        self._readers = sessionmaker(self.engine, expire_on_commit=False, autoflush=False)

    @contextmanager
    def transaction(self, name: str = "") -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an exception.

        One that changes the state of a request or job has a `name`: tests halt processes before and after its commit.
        """
        with self._sessions.begin() as session:
            yield session
            if name:
                reach(f"{name}.commit")
        if name:
            reach(f"{name}.committed")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Single statements that read, each of its own moment: a round trip each, no transaction."""
        with self._readers() as session:
            yield session

    def statement(self, sql: str, values: dict[str, Any], name: str) -> list[Any]:
        """One statement that is a transaction of its own, in one round trip; returns its rows.

        For the way that must be fast: locks that it takes are held for as long as the server needs, not for as long as
        this process does.

        Raises:
            psycopg.Error: As PostgreSQL has it; the message holds no parameter but those of a violated constraint.
        """
        reach(f"{name}.commit")
        pooled = self.engine.raw_connection()
        connection: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
        try:
            connection.autocommit = True  # as it should be: were it not, nothing would be stored and nobody told
            rows = connection.execute(sql, values).fetchall()
        except BaseException:
            pooled.invalidate()  # whatever its state is, nobody else should have it
            raise
        pooled.close()
        reach(f"{name}.committed")
        return rows

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()


def _stamp(_: Any, record: ConnectionPoolEntry) -> None:
    record.info["idle_since"] = time.monotonic()


def _ping(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """A connection that lay idle may be gone: ask, and let the pool make a new one."""
    if time.monotonic() - record.info.get("idle_since", time.monotonic()) > PING_AFTER:
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.Error as error:
            raise DisconnectionError from error
