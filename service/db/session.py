"""The connection pool, and the only code that commits."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import ExceptionContext, create_engine, event, exc
from sqlalchemy.exc import InvalidatePoolError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from service.db.connection import ANSWER_SECONDS, Connection
from service.failpoints import reach

PING_AFTER, PING_SECONDS = 1.0, 2.0  # a connection that was idle for so long has so long to answer
POOL_SECONDS = 5.0  # a caller that gets no connection in this time is refused and may try again later
DATABASE_AWAY = (OperationalError, psycopg.OperationalError, exc.TimeoutError)  # the last: no connection is free
STANDBY = "the database takes no writes: it is a standby"


class Database:
    """A pool of connections, and transactions on them."""

    def __init__(
        self, url: str, *, pool_size: int = 10, answer_seconds: float = ANSWER_SECONDS, pooler: bool = False
    ) -> None:
        """Connect lazily to `url`; parameters never appear in errors or logs. See `Connection` for the others."""

        def connect(_dialect: object, _pooled: object, _arguments: object, values: dict[str, Any]) -> Connection:
            return Connection.open(url, answer_seconds, pooler=pooler, **values)

        self.engine = create_engine(
            "postgresql+psycopg://",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_SECONDS,
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",  # most queries are one statement; transactions set their own level
            skip_autocommit_rollback=True,
        )
        event.listen(self.engine, "do_connect", connect)
        event.listen(self.engine, "handle_error", _leave_standby, retval=True)
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
        except BaseException as error:
            pooled.invalidate()  # its state is unknown, so no other caller may use it
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                self.engine.dispose()
                raise psycopg.OperationalError(STANDBY) from error
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
    """Test a connection that was idle: the server may have closed it. On an error the pool opens all anew."""
    if time.monotonic() - pooled.info.get("idle_since", time.monotonic()) > PING_AFTER:
        usual = connection.answer_seconds
        if not connection.pooler:  # a pooler may have no session of the server free for longer than that
            connection.answer_seconds = PING_SECONDS
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.Error as error:
            raise InvalidatePoolError from error
        finally:
            connection.answer_seconds = usual


def _leave_standby(context: ExceptionContext) -> BaseException | None:
    """Open connections anew that lead to a server which takes no writes any more: another host of the URL may."""
    if not isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
        return None
    context.is_disconnect = True
    return OperationalError(None, None, psycopg.OperationalError(STANDBY))
