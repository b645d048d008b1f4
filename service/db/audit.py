"""Appending to the log, in the transaction that the entry tells of."""

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.audit.canonical import dumps


def append(session: Session, kind: str, **data: object) -> None:
    """Append one entry of ids and digests; never anything that was submitted.

    The SQL function takes an advisory lock until the transaction ends, so call it last.
    """
    entry = dumps({"kind": kind, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **data})
    session.flush()
    session.execute(select(func.audit_append(entry)))
