"""Connections to PostgreSQL that end when the server falls silent.

A host that is gone answers nothing, and without limits TCP waits a quarter of an hour for it. Here a connection that is
being made ends after CONNECT_SECONDS, one whose host has gone after about SILENT_SECONDS, and a call to a server that
is there and does not answer after `answer_seconds`.
"""

import time
from typing import Any, Self

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

CONNECT_SECONDS = 5  # for each host of the URL
SILENT_SECONDS = 10
ANSWER_SECONDS = 65.0
PARAMETERS = {  # of libpq (PostgreSQL's documentation, 34.1.2). Those of the URL go before them.
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * SILENT_SECONDS,
    "keepalives_idle": SILENT_SECONDS // 2,
    "keepalives_interval": 1,
    "keepalives_count": SILENT_SECONDS // 2,
    "target_session_attrs": "read-write",  # of several hosts, the one that is no standby
}


def parameters(url: str) -> dict[str, Any]:
    """What libpq and psycopg are to connect with: the URL's parameters, and ours."""
    return {**PARAMETERS, **conninfo_to_dict(url)}


def server_limits(answer_seconds: float) -> str:
    """The `options` of a session: the server gives up before the client does.

    Without them, a process frozen between BEGIN and COMMIT would hold its locks for ever, the log's included.
    """
    lock, statement = min(10_000, int(800 * answer_seconds)), int(1000 * (answer_seconds - 2))
    limits = f"-c lock_timeout={lock} -c statement_timeout={statement} -c idle_in_transaction_session_timeout=8000"
    return f"-c timezone=UTC {limits}"


class Connection(psycopg.Connection[TupleRow]):
    """A connection that is closed when the server does not answer a call within `answer_seconds`."""

    answer_seconds = ANSWER_SECONDS
    pooler = False

    @classmethod
    def open(cls, url: str, answer_seconds: float, *, pooler: bool = False, **values: Any) -> Self:
        """Connect.

        Args:
            url: The URL, with any number of hosts.
            answer_seconds: The most seconds that a call may take. The server ends statements two seconds before.
            pooler: A transaction pooler is between. It takes no `options`, so that the limits are those of the role,
                and the next transaction may be in another session of the server, which has prepared nothing. What it
                says of the server, such as whether that is a standby, may be old.
            values: Further arguments for psycopg.

        Raises:
            psycopg.OperationalError: No host answers, or none of them takes writes.
        """
        given = parameters(url)
        if pooler:
            given |= {"prepare_threshold": None, "target_session_attrs": "any"}
        else:
            given["options"] = f"{given.get('options', '')} {server_limits(answer_seconds)}"
        connection = cls.connect(**given, **values)
        connection.answer_seconds, connection.pooler = answer_seconds, pooler
        if pooler:  # PgBouncer remembers this one for its client
            connection.execute("SET timezone TO 'UTC'")
            connection.commit()
        return connection

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for the server as psycopg does, but not for ever.

        Raises:
            psycopg.OperationalError: There was no answer in time. The connection is closed.
        """
        began, seconds = time.monotonic(), self.answer_seconds if timeout is None else timeout
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError as error:
            if time.monotonic() - began < seconds:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the database did not answer in time") from error
