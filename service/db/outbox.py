"""Callbacks and alerts still to be made."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest, Outbox
from service.domain.states import TERMINAL_REQUESTS

LONGEST = timedelta(hours=6)
ALERT = -1  # the target of what goes to the operator
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class DueEntry:
    """Something to be told: of which request, what it had come to, and to which of its targets."""

    id: UUID
    request_id: UUID
    status: str
    target: int


def enqueue(session: Session, request_id: UUID, callbacks: int, status: str) -> None:
    """Queue what a request came to, for each of its targets."""
    session.add_all(Outbox(request_id=request_id, status=status, target=i) for i in range(callbacks))


def enqueue_alert(session: Session, request_id: UUID, status: str, *, again: bool = True) -> None:
    """Tell the operator that a request came to this; if it comes to it again, again."""
    entry = insert(Outbox).values(id=uuid4(), request_id=request_id, status=status, target=ALERT)
    rearmed = {"next_at": func.now(), "delivered_at": None, "attempts": 0}
    session.execute(
        entry.on_conflict_do_update(
            index_elements=["request_id", "status"], index_where=text("target < 0"), set_=rearmed
        )
        if again
        else entry.on_conflict_do_nothing()
    )


def enqueue_due_alerts(session: Session, before: datetime, status: str) -> None:
    """Tell the operator, once each, of every request that has not ended and is due before then."""
    r = DeletionRequest
    told = select(Outbox.id).where(Outbox.request_id == r.id, Outbox.target < 0, Outbox.status == status)
    due = select(r.id).where(r.due_at < before, r.status.not_in(TERMINAL_REQUESTS), ~told.exists())
    for request_id in session.scalars(due.order_by(r.due_at).limit(AT_ONCE)):
        enqueue_alert(session, request_id, status, again=False)


def claim_due(session: Session, held: timedelta) -> DueEntry | None:
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
    return DueEntry(*row) if row else None


def is_superseded(session: Session, due: DueEntry) -> bool:
    """Whether the same target was told something later already: this would be taken for the newer."""
    entry = session.get(Outbox, due.id)
    if entry is None or not entry.attempts or due.target < 0:
        return False
    later = select(Outbox.id).where(Outbox.request_id == due.request_id, Outbox.target == due.target)
    later = later.where(Outbox.created_at > entry.created_at, Outbox.delivered_at.is_not(None))
    return session.scalar(later.limit(1)) is not None


def store_attempt(session: Session, entry_id: UUID, *, delivered: bool, max_attempts: int) -> bool:
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


def undelivered_count(session: Session) -> int:
    """Callbacks that are neither made nor given up."""
    query = select(func.count()).where(Outbox.delivered_at.is_(None), Outbox.next_at.is_not(None))
    return session.scalar(query) or 0
