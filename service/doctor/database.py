"""What the doctor looks at in the database: its settings and standbys, and the log."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from service import migrate
from service.audit.merkle import leaf_hash
from service.bootstrap import Services
from service.db import diagnostics, log_home
from service.doctor.finding import Finding
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import LogBusy, LogDamaged

SKEW = timedelta(seconds=5)  # allowed difference between this host's clock and the database's
LOG_ENTRIES = 1000  # how many of the newest entries are hashed again
WANTED = {  # setting -> its value, and what another one does
    "fsync": ("on", "an accepted request can be lost"),
    "full_page_writes": ("on", "an accepted request can be lost"),
    "synchronous_commit": ("on", "an accepted request can be lost"),
    "default_transaction_isolation": ("read committed", "requests are refused that arrive at the same time"),
}
LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
FULL = 0.8  # of the server's connections
KEPT_BYTES = 2**30  # the most that a replication slot may keep for a standby that is away
LATE = timedelta(minutes=15)  # for a callback that is due


def schema(session: Session, services: Services) -> Iterator[Finding]:
    """The database has the program's schema revision."""
    head = ScriptDirectory.from_config(migrate.config(services.settings.database_url)).get_current_head()
    try:
        current = session.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:
        current = None
    if current != head:
        problem = f"The database has the schema revision {current or 'none'}; the program needs {head}."
        yield Finding("schema", problem, "Run unlearnd migrate.")


def _clocks(session: Session, _: Services, now: datetime) -> Iterator[Finding]:
    """The clocks of this host and of the database agree."""
    database_time = session.scalar(text("SELECT clock_timestamp()"))
    if abs(database_time - now) > SKEW:
        seconds = (now - database_time).total_seconds()
        problem = f"The clock of this host differs from the database's by {seconds:+.0f} s."
        yield Finding("clocks", problem, "Run a time service on both hosts.")


def _roles(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """The service's database role cannot change the log."""
    if diagnostics.owns_the_log(session):
        problem = "The service logs in as the owner of the log, so it could change the log."
        remedy = "Set UNLEARND_OWNER_DATABASE_URL for `unlearnd migrate`, and another role in UNLEARND_DATABASE_URL."
        yield Finding("roles", problem, remedy)


def _settings(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """A committed transaction survives a crash of the database, and transactions see what others committed."""
    for name, (wanted, otherwise) in WANTED.items():
        value = session.scalar(text(f"SHOW {name}"))
        if value == "off" or wanted != "on" != value != wanted:
            yield Finding("durability", f"{name} is {value}, so {otherwise}.", f"Set {name} = {wanted}.")


def _replication(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """Standbys that the server waits for, or keeps its journal for, are there."""
    for slot, kept in diagnostics.idle_slots(session):
        if kept > KEPT_BYTES:
            problem = f"The replication slot {slot} keeps {kept >> 20} MiB for a standby that is away."
            yield Finding("replication", problem, "Start the standby, or drop the slot before the disk is full.")
    if diagnostics.waits_for_standby(session):
        problem = "Every commit waits for a standby (synchronous_standby_names), and none is connected."
        yield Finding("replication", problem, "Start a standby, or empty synchronous_standby_names and reload.")


def _connections(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """The server has connections left."""
    used, most = diagnostics.connections(session)
    if used > FULL * most:
        problem = f"{used} of the server's {most} connections are used."
        yield Finding("connections", problem, "Raise max_connections, run fewer processes, or put a pooler between.")


def _limits(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """No session holds its locks for ever. Behind a pooler its login has the limits that it sets otherwise."""
    for name in LIMITS:
        if session.scalar(text(f"SHOW {name}")) == "0":
            problem = f"Sessions have no {name}: a frozen process would hold its locks for ever."
            remedy = "Set UNLEARND_DATABASE_POOLER, and follow Put a pooler between, in the guide Operate it."
            yield Finding("connections", problem, remedy)


def _callbacks(session: Session, _: Services, now: datetime) -> Iterator[Finding]:
    """Every callback is delivered in time or will be tried again."""
    undelivered = diagnostics.callbacks_given_up(session)
    if undelivered:
        problem = f"{undelivered} callbacks could not be delivered and are not tried again."
        yield Finding("callbacks", problem, "Check the URLs, and ask the receivers to poll.")
    waiting, oldest = diagnostics.callbacks_due(session)
    if oldest and oldest < now - LATE:
        problem = f"{waiting} callbacks are due and not sent, the oldest since {oldest:%Y-%m-%d %H:%M} UTC."
        yield Finding("callbacks", problem, "Start a control worker: unlearnd control.")


def _home(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """The log goes on in this database, and an operator knows what was lost on the way."""
    if not log_home.is_settled(session):
        problem = (
            "The log does not go on in this database, which was promoted, restored or copied: no request is taken."
        )
        yield Finding(
            "log", problem, "Run unlearnd reconcile. A control worker does so by itself, unless the log forked."
        )
    move = log_home.unseen_move(session)
    if move:
        lost = f"; lost are {len(move.lost)} accepted requests, the first {move.lost[0]}" if move.lost else ""
        problem = (
            f"The database was promoted, restored or copied, and reconciled at {move.at:%Y-%m-%d %H:%M} UTC. "
            f"Entries of the log that it had lost: {move.brought_back}{lost}."
        )
        remedy = (
            "Ask the compliance tools to send again what they sent shortly before: the same Idempotency-Keys are safe. "
            "Then run unlearnd reconcile --seen."
        )
        yield Finding("log", problem, remedy)


def _log(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    """The log can be signed, agrees with what was signed, and its newest entries are unchanged."""
    try:
        services.log.missing_entries(compare_all=True)
    except LogDamaged as error:
        problem = f"The log's copy in storage is damaged: {error}."
        yield Finding("log", problem, "Restore storage/ledger/log from a backup of storage, newest first.")
    except LogBusy as error:
        yield Finding("log", f"The log cannot be signed: {error}.", "End the control worker that is frozen.")
    except LogForked as error:
        problem = f"The log contradicts the signed checkpoint: {error}."
        yield Finding("log", problem, "See docs/guides/operations.md: reconcile --new-log.")
    for name in services.witnesses.late():
        problem = f"The witness {name} has cosigned no checkpoint for a day, or none at all."
        yield Finding("witnesses", problem, "Read why in the control worker's log: a witness did not cosign.")
    rows = diagnostics.newest_entries(session, LOG_ENTRIES)
    for row, before in pairwise(rows):
        if row.index != before.index + 1:
            problem = f"The log entries {before.index + 1} to {row.index - 1} are missing."
            yield Finding("log", problem, "Compare the log with an export.")
    for row in rows:
        if leaf_hash(row.entry) != row.leaf_hash:
            remedy = "Compare the log with an export, and treat the change as an incident."
            yield Finding("log", f"The log entry {row.index} was changed.", remedy)


CHECKS: tuple[Callable[[Session, Services, datetime], Iterator[Finding]], ...] = (
    _clocks,
    _roles,
    _settings,
    _replication,
    _limits,
    _connections,
    _callbacks,
    _home,
    _log,
)
