"""Appending to the log, in the transaction that the entry tells of."""

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.audit.canonical import dumps

APPEND = text("SELECT audit_append(:entry)")


def append(session: Session, kind: str, **data: object) -> None:
    """Append one entry of ids and digests; never anything that was submitted.

    The SQL function takes an advisory lock until the transaction ends, so call it last.
    """
    session.flush()
    session.execute(APPEND, {"entry": entry_of(kind, **data)})


def entry_of(kind: str, **data: object) -> bytes:
    """The canonical bytes of an entry."""
    return dumps({"kind": kind, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **data})
