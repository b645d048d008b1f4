"""Entries of the transparency log. An entry is appended in the transaction that it describes."""

from datetime import UTC, datetime

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.audit.canonical import dumps
from service.db.tables import AuditEntry

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


def leaf_hashes(session: Session, count: int | None = None) -> list[bytes]:
    """The leaf hashes of the first `count` entries, or of all, in order."""
    return list(session.scalars(select(AuditEntry.leaf_hash).order_by(AuditEntry.index).limit(count)))


def entries(session: Session, start: int, count: int) -> list[bytes]:
    """The canonical bytes of `count` entries from index `start` on."""
    query = select(AuditEntry.entry).where(AuditEntry.index >= start).order_by(AuditEntry.index).limit(count)
    return list(session.scalars(query))
