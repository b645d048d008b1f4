"""The connection pool, and the only code that commits."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from service.failpoints import reach

DRIVER = "postgresql+psycopg"
Connection: TypeAlias = psycopg.Connection[TupleRow]
PING_AFTER = 1.0  # seconds
POOL_SECONDS = 5.0  # a caller that gets no connection in this time is refused and may try again later
# Without these limits, a process frozen between BEGIN and COMMIT would hold its locks for ever, the log's included.
OPTIONS = "-c timezone=UTC -c lock_timeout=10000 -c statement_timeout=60000 -c idle_in_transaction_session_timeout=5000"


def sqlalchemy_url(url: str) -> str:
    """A `postgresql://` URL that names the installed driver."""
    return url.replace("postgresql://", f"{DRIVER}://", 1).replace("postgres://", f"{DRIVER}://", 1)


class Database:
    """A pool of connections, and transactions on them."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        """Connect lazily to `url`; parameters never appear in errors or logs."""
        self.engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_SECONDS,
            hide_parameters=True,
            connect_args={"options": OPTIONS},
            isolation_level="AUTOCOMMIT",  # most queries are one statement; transactions set their own level
            skip_autocommit_rollback=True,
        )
        event.listen(self.engine, "checkin", _note_idle_since)
        event.listen(self.engine, "checkout", _ping_if_idle)
        transactional = self.engine.execution_options(isolation_level="READ COMMITTED")
        self._sessions = sessionmaker(transactional, expire_on_commit=False)
        self._readers = sessionmaker(self.engine, expire_on_commit=False, autoflush=False)

    @contextmanager
    def transaction(self, name: str = "") -> Iterator[Session]:
        """One transaction: commits at the end, rolls back on an exception.

        A transaction that changes the state of a request or job has a `name`: tests halt processes before and after
        its commit.
        """
        with self._sessions.begin() as session:
            yield session
            if name:
                reach(f"{name}.commit")
        if name:
            reach(f"{name}.committed")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for single reading statements: one round trip each, and no transaction around them."""
        with self._readers() as session:
            yield session

    def statement(self, sql: str, values: Mapping[str, object], name: str) -> list[TupleRow]:
        """Run one statement as a transaction of its own, in one round trip; returns its rows.

        This is for the fast path: the statement holds its locks only while the server runs it, whatever this process
        does meanwhile.

        Raises:
            psycopg.Error: PostgreSQL's error; its message holds no parameters but those of a violated constraint.
        """
        reach(f"{name}.commit")
        pooled = self.engine.raw_connection()
        connection: Connection = pooled.driver_connection  # type: ignore[assignment]
        try:
            connection.autocommit = True  # the pool's setting; without it nothing would be stored, and without an error
            rows = connection.execute(sql, values).fetchall()
        except BaseException:
            pooled.invalidate()  # its state is unknown, so no other caller may use it
            raise
        pooled.close()
        reach(f"{name}.committed")
        return rows

    def close(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()


def _note_idle_since(_: object, pooled: ConnectionPoolEntry) -> None:
    """Note when a connection went back into the pool."""
    pooled.info["idle_since"] = time.monotonic()


def _ping_if_idle(connection: Connection, pooled: ConnectionPoolEntry, _: object) -> None:
    """Test a connection that was idle: the server may have closed it. On an error the pool opens a new one."""
    if time.monotonic() - pooled.info.get("idle_since", time.monotonic()) > PING_AFTER:
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.Error as error:
            raise DisconnectionError from error
