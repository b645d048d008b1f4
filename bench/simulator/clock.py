"""Virtual time: `now()` in a PostgreSQL database, and `datetime.now` in the service's modules."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from service.db.connection import Connection
from service.db.session import Database

START = datetime(2027, 1, 4, tzinfo=UTC)
# Before the tables are made, so that their defaults and triggers take it, too. It belongs to this one database.
VIRTUAL_NOW = """
SET allow_system_table_mods = on;
ALTER FUNCTION pg_catalog.now() RENAME TO real_now;
CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT to_timestamp(current_setting('simulator.now')::float8) $$;
ALTER DATABASE postgres SET simulator.now = '{start}';
ALTER DATABASE postgres SET synchronous_commit = off;
"""
SET_NOW = "SELECT set_config('simulator.now', %s, false)"


class Clock:
    """A clock that stands until it is moved, in whole milliseconds."""

    def __init__(self) -> None:
        """Begin at `START`."""
        self.seconds = 0.0  # since the start

    @property
    def now(self) -> datetime:
        """The time that everybody sees, UTC."""
        return START + timedelta(milliseconds=round(self.seconds * 1000))

    def move(self, seconds: float) -> None:
        """Move the clock to so many seconds since the start, never back."""
        self.seconds = max(self.seconds, round(seconds, 3))


def install(url: str) -> None:
    """Give a database without tables a `now()` that each connection sets, and commits that wait for no disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(VIRTUAL_NOW.format(start=START.timestamp()))


def attach(db: Database, clock: Clock) -> None:
    """Let every connection that leaves a pool have the clock's time."""

    def set_now(connection: Connection, pooled: ConnectionPoolEntry, _: object) -> None:
        now = str(clock.now.timestamp())
        if pooled.info.get("virtual_now") != now:
            connection.execute(SET_NOW, [now])
            connection.commit()
            pooled.info["virtual_now"] = now

    event.listen(db.engine, "checkout", set_now)


@contextmanager
def virtual_datetime(clock: Clock) -> Iterator[None]:
    """Let the modules of the service that have imported `datetime` see the clock's time."""

    class AnyDatetime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class VirtualDatetime(datetime, metaclass=AnyDatetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            """The clock's time."""
            return clock.now.astimezone(tz)

    modules = [module for name, module in sys.modules.items() if name.startswith("service.")]
    patched = [module for module in modules if vars(module).get("datetime") is datetime]
    for module in patched:
        vars(module)["datetime"] = VirtualDatetime
    try:
        yield
    finally:
        for module in patched:
            vars(module)["datetime"] = datetime
