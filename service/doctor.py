"""`unlearnd doctor`: what is wrong with an installation, each finding with what to do about it.

Reads the database, storage, keys and broker; changes nothing.
"""

import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from alembic.script import ScriptDirectory
from cryptography.exceptions import InvalidTag
from kombu import Connection
from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from service import migrate
from service.audit.merkle import leaf_hash
from service.audit.trust import ROLES
from service.bootstrap import KEK, Services
from service.db import diagnostics, models
from service.evidence.log_keeper import LogBusy, LogForked
from service.privacy.envelope import DataKey
from service.privacy.kms import HASH_KEY

SKEW = timedelta(seconds=5)
ROOM_BYTES = 2**30
LOG_ENTRIES = 1000  # how many of the newest are hashed again
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: Which check found it.
        problem: What is wrong; no personal data.
        remedy: What to do.
    """

    check: str
    problem: str
    remedy: str


def examine(services: Services, *, now: datetime | None = None) -> list[Finding]:
    """Run every check; those that need the database are left out if it is away or of another schema."""
    found = [*_keys(services), *_broker(services), *_storage(services)]
    try:
        with services.db.reading() as session:
            schema = list(_schema(session, services))
            found += schema
            if not schema:
                for check in CHECKS:
                    found += check(session, services, now or datetime.now(UTC))
    except OperationalError as error:
        found.append(Finding("database", f"It does not answer ({type(error.orig).__name__}).", "Start PostgreSQL."))
    return found


def _keys(services: Services) -> Iterator[Finding]:
    folder = services.settings.keys_dir
    wrapping = (HASH_KEY,) if services.settings.kms_key_id else (KEK,)
    for name in (*wrapping, *(f"{role}.pem" for role in ROLES)):
        path = folder / name
        if not path.exists():
            anew = "it cannot be made anew" if name in wrapping else "or `unlearnd keys init`, if it never was"
            yield Finding("keys", f"{path} is missing.", f"Restore it from where keys are kept; {anew}.")
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("keys", f"{path} can be read by others.", f"chmod 600 {path}, and consider the key known.")


def _broker(services: Services) -> Iterator[Finding]:
    try:
        with Connection(services.settings.broker_url, transport_options={"socket_connect_timeout": 2}) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except (BrokerAway, OSError):
        yield Finding(
            "broker", "It does not answer; work is found by the sweep alone, later.", "Start Valkey or Redis."
        )


def _storage(services: Services) -> Iterator[Finding]:
    root = services.settings.storage_dir
    probe = root / "staging" / ".doctor"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("storage", f"{root} cannot be written to ({error.strerror}).", "Mount it writable for this user.")
        return  # what else storage should hold is told by the checks that miss it
    free = shutil.disk_usage(root).free
    if free < ROOM_BYTES:
        yield Finding(
            "storage", f"{free >> 20} MiB are left on {root}.", "Make room: a job needs three times its model."
        )


def _schema(session: Session, services: Services) -> Iterator[Finding]:
    head = ScriptDirectory.from_config(migrate.config(services.settings.database_url)).get_current_head()
    try:
        current = session.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:
        current = None
    if current != head:
        yield Finding(
            "schema", f"The database is at {current or 'nothing'}, the program at {head}.", "unlearnd migrate"
        )


def _clocks(session: Session, _: Services, now: datetime) -> Iterator[Finding]:
    theirs = session.scalar(text("SELECT clock_timestamp()"))
    if abs(theirs - now) > SKEW:
        seconds = (now - theirs).total_seconds()
        yield Finding("clocks", f"This host is {seconds:+.0f} s off the database's.", "Run a time service on both.")


def _roles(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    if diagnostics.owns_the_log(session):
        yield Finding(
            "roles", "The service logs in as the owner of the log, who could change it.",
            "Set UNLEARND_OWNER_DATABASE_URL for `unlearnd migrate`, and another role in UNLEARND_DATABASE_URL.",
        )  # fmt: skip


def _durability(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    for name in DURABLE:
        value = session.scalar(text(f"SHOW {name}"))
        if value == "off":
            yield Finding("durability", f"{name} is {value}: what was answered 202 can be lost.", f"Set {name} = on.")


def _sealed(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    newest = diagnostics.newest_sealed_request(session)
    try:
        if newest is not None:
            DataKey.unwrap(newest[0], newest[1], services.wrapper)
    except (InvalidTag, OSError, ValueError):
        yield Finding("keys", "kek does not open the newest request.", "Restore the kek that was used; see Keys.")


def _versions(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    for name, number, digest, files in diagnostics.newest_versions(session):
        folder = services.storage.release(digest)
        wrong = next((f["path"] for f in files if not _there(folder / f["path"], f["size"])), None)
        if wrong:
            problem = f"{name} {number}: {wrong} is not there, or not as long as it was."
            yield Finding("versions", problem, f"Restore versions/{digest} from a backup of storage.")
    for (name, number), digest in services.storage.published().items() - models.published(session).items():
        problem = f"Storage knows {name} {number} ({digest[:12]}), the database does not: it is an older backup."
        yield Finding("ledger", problem, "unlearnd reconcile")


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _corpora(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    for digest in models.reference_text_digests(session):
        if not services.storage.reference_texts(digest).is_file():
            yield Finding("corpora", f"corpora/{digest[:12]} is missing.", "Restore it from a backup of storage.")


def _subjects(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    again = "unlearnd corpora remove, and once its files are as they should be, add."
    for model, corpus, reason in diagnostics.failed_corpora(session):
        yield Finding("subjects", f"The corpus {corpus} of {model} could not be indexed: {reason}.", again)
    for reason, count in diagnostics.unsearchable(session):
        yield Finding("subjects", f"{count} requests cannot be looked up: {reason}.", again)


def _work(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    settings = services.settings
    for job_id in diagnostics.abandoned_jobs(session, 3 * settings.lease_seconds):
        problem = f"Job {job_id}: nobody holds it, and has not for long."
        yield Finding("leases", problem, "Start workers: unlearnd worker (compute), unlearnd control.")
    for job_id, reason in diagnostics.quarantined_jobs(session):
        problem = f"Job {job_id} was given up ({reason}); its requests have failed."
        yield Finding("jobs", problem, f"Remove the reason, then: unlearnd jobs retry {job_id}")
    waiting = diagnostics.unbatched(session, settings.max_wait_seconds + 10 * settings.sweep_seconds)
    if waiting:
        problem = f"{waiting} requests wait for a batch though their window has passed."
        yield Finding("batching", problem, "Start a control worker: unlearnd control.")


def _promises(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    late, oldest = diagnostics.overdue(session)
    if late:
        problem = f"{late} requests are past their deadline, the oldest since {oldest:%Y-%m-%d}."
        yield Finding("deadlines", problem, "unlearnd requests show ID says where each stands.")
    lost = diagnostics.callbacks_given_up(session)
    if lost:
        yield Finding("callbacks", f"{lost} callbacks were given up.", "Ask their receivers to poll; check their URLs.")


def _log(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    try:
        services.log.missing_entries()
    except LogBusy as error:
        yield Finding("log", f"Nothing can be signed: {error}.", "A control worker is frozen: end it.")
    except LogForked as error:
        yield Finding(
            "log", f"It contradicts what was signed: {error}.", "See docs/guides/operations.md: reconcile --new-log."
        )
    rows = diagnostics.newest_entries(session, LOG_ENTRIES)
    for row, before in pairwise(rows):
        if row.index != before.index + 1:
            yield Finding(
                "log", f"Entries {before.index + 1} to {row.index - 1} are missing.", "Compare with an export."
            )
    for row in rows:
        if leaf_hash(row.entry) != row.leaf_hash:
            yield Finding("log", f"Entry {row.index} was changed.", "Compare with an export; treat as an incident.")


CHECKS: tuple[Callable[[Session, Services, datetime], Iterator[Finding]], ...] = (
    _clocks, _roles, _durability, _sealed, _versions, _corpora, _subjects, _work, _promises, _log,
)  # fmt: skip
