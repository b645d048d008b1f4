"""The outbox: callbacks and alerts that are not delivered yet."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.due_requests import is_due
from service.db.tables import DeletionRequest, Outbox

MAX_BACKOFF = timedelta(hours=6)
ALERT = -1  # the target of an alert: the operator
MAX_ALERTS = 500  # in one call


@dataclass(frozen=True, slots=True)
class DueEntry:
    """A notification that is due: its request, the status it announces, and the index of its target."""

    id: UUID
    request_id: UUID
    status: str
    target: int


def enqueue(session: Session, request_id: UUID, callbacks: int, status: str) -> None:
    """Queue a notification of a request's status for each of its `callbacks` targets."""
    session.add_all(Outbox(request_id=request_id, status=status, target=target) for target in range(callbacks))


def enqueue_alert(session: Session, request_id: UUID, status: str, *, repeat: bool = True) -> None:
    """Queue an alert of a request's status for the operator; `repeat` sends an alert again that was sent before."""
    entry = insert(Outbox).values(id=uuid4(), request_id=request_id, status=status, target=ALERT)
    if repeat:
        entry = entry.on_conflict_do_update(
            index_elements=["request_id", "status"],
            index_where=text("target < 0"),
            set_={"next_at": func.now(), "delivered_at": None, "attempts": 0},
        )
    else:
        entry = entry.on_conflict_do_nothing()
    session.execute(entry)


def enqueue_due_alerts(session: Session, before: datetime, status: str) -> None:
    """Queue an alert, once each, for requests that somebody waits for and that are due before a moment."""
    request = DeletionRequest
    alert = select(Outbox.id).where(Outbox.request_id == request.id, Outbox.target < 0, Outbox.status == status)
    due = select(request.id).where(request.due_at < before, is_due(), ~alert.exists())
    for request_id in session.scalars(due.order_by(request.due_at).limit(MAX_ALERTS)):
        enqueue_alert(session, request_id, status, repeat=False)


def claim_due(session: Session, held: timedelta) -> DueEntry | None:
    """The entry that has been due longest, put off by `held` so that no other worker sends it meanwhile."""
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
    """Whether a newer notification reached the same target already: the target would take this one for the newest."""
    entry = session.get(Outbox, due.id)
    if entry is None or not entry.attempts or due.target < 0:
        return False
    later = select(Outbox.id).where(Outbox.request_id == due.request_id, Outbox.target == due.target)
    later = later.where(Outbox.created_at > entry.created_at, Outbox.delivered_at.is_not(None))
    return session.scalar(later.limit(1)) is not None


def store_attempt(session: Session, entry_id: UUID, *, delivered: bool, max_attempts: int) -> bool:
    """Store the result of an attempt; the next one is after 2, 4, 8, ... seconds, six hours at most.

    Returns:
        Whether the entry is given up.
    """
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
        entry.next_at = now + min(MAX_BACKOFF, timedelta(seconds=2**entry.attempts))
    return entry.next_at is None


def undelivered_count(session: Session) -> int:
    """How many notifications are neither delivered nor given up."""
    query = select(func.count()).where(Outbox.delivered_at.is_(None), Outbox.next_at.is_not(None))
    return session.scalar(query) or 0
