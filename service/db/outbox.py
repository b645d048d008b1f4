"""Callbacks still to be made."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.db.tables import Outbox

LONGEST = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Due:
    """Something to be told: of which request, what it had come to, and to which of its targets."""

    id: UUID
    request_id: UUID
    status: str
    target: int


def take_due(session: Session, held: timedelta) -> Due | None:
    """The entry that is due longest, put off by `held` so that no one else makes it meanwhile."""
    due = (
        select(Outbox.id)
        .where(Outbox.delivered_at.is_(None), Outbox.next_at <= func.now())
        .order_by(Outbox.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.execute(
        update(Outbox)
        .where(Outbox.id == due.scalar_subquery())
        .values(next_at=func.now() + held)
        .returning(Outbox.id, Outbox.request_id, Outbox.status, Outbox.target)
    ).first()
    return Due(*row) if row else None


def is_overtaken(session: Session, due: Due) -> bool:
    """Whether the same target was told something later already: this would be taken for the newer."""
    entry = session.get(Outbox, due.id)
    if entry is None or not entry.attempts or due.target < 0:
        return False
    later = select(Outbox.id).where(Outbox.request_id == due.request_id, Outbox.target == due.target)
    later = later.where(Outbox.created_at > entry.created_at, Outbox.delivered_at.is_not(None))
    return session.scalar(later.limit(1)) is not None


def record(session: Session, entry_id: UUID, *, delivered: bool, max_attempts: int) -> bool:
    """An attempt was made: done, or again after 2, 4, 8, ... seconds, six hours at most; true if it is given up."""
    entry = session.get(Outbox, entry_id, with_for_update=True)
    if entry is None:
        return False
    entry.attempts += 1
    now = datetime.now(UTC)
    if delivered:
        entry.delivered_at = now
    elif entry.attempts >= max_attempts:
        entry.next_at = None
    else:
        entry.next_at = now + min(LONGEST, timedelta(seconds=2**entry.attempts))
    return entry.next_at is None


def waiting(session: Session) -> int:
    """Callbacks that are neither made nor given up."""
    query = select(func.count()).where(Outbox.delivered_at.is_(None), Outbox.next_at.is_not(None))
    return session.scalar(query) or 0
