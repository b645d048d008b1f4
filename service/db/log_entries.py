"""Entries of the transparency log. An entry is appended in the transaction that it describes."""

from datetime import UTC, datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service.audit.canonical import dumps
from service.db.log_tables import AuditEntry

LOCK = text("SELECT pg_advisory_xact_lock(7310579)")  # that of `audit_append`
APPEND = text("SELECT audit_append(:entry)")
TIMED_TO_THE_SECOND = ("job.certified",)  # its time decides which keys were valid; the certificate has it, too


def append(session: Session, kind: str, **data: object) -> int:
    """Append an entry of ids and digests, never of submitted text; returns its index.

    The SQL function holds an advisory lock until the transaction ends, so call it last.
    """
    return append_bytes(session, encode_entry(kind, **data))


def append_bytes(session: Session, entry: bytes) -> int:
    """Append an encoded entry; returns its index."""
    session.flush()
    index: int = session.execute(APPEND, {"entry": entry}).scalar_one()
    return index


def encode_entry(kind: str, **data: object) -> bytes:
    """The canonical bytes of an entry.

    Its time is rounded down to the hour, because whoever knows when a person asked could find the person's request.
    """
    at = datetime.now(UTC)
    if kind not in TIMED_TO_THE_SECOND:
        at = at.replace(minute=0, second=0)
    return dumps({"kind": kind, "at": at.isoformat(timespec="seconds"), **data})


def optional_reason(reason: str | None) -> dict[str, str]:
    """The member of an entry that gives a reason; none if none was given."""
    return {} if reason is None else {"reason": reason}


def size(session: Session) -> int:
    """The number of entries."""
    last = session.scalar(select(func.max(AuditEntry.index)))
    return 0 if last is None else last + 1


def rows(session: Session, start: int, count: int) -> list[tuple[bytes, bytes]]:
    """The canonical bytes and the leaf hash of each of the entries `start` to `start + count - 1` that there are."""
    query = select(AuditEntry.entry, AuditEntry.leaf_hash).where(AuditEntry.index.between(start, start + count - 1))
    return [(entry, leaf_hash) for entry, leaf_hash in session.execute(query.order_by(AuditEntry.index))]


def entries(session: Session, start: int, count: int) -> list[bytes]:
    """The canonical bytes of `count` entries from index `start` on, as far as there are."""
    return [entry for entry, _ in rows(session, start, count)]
