"""Pauses of lanes: nothing is sent to a host that does not answer (a circuit breaker)."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import case, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.limit_tables import CallbackLane
from service.db.tables import Outbox

OPERATOR = 0  # the lane of alerts
PAUSE_AFTER = 3  # attempts in a row without an answer
MAX_AGE = timedelta(days=4)  # an entry that waits for longer is given up; its own attempts end before
MAX_PUT_OFF = 10_000  # entries in one call; the next failure puts off the rest


def end_pause(session: Session, lane: int) -> None:
    """The host has answered: whatever waits for it may be sent."""
    session.execute(delete(CallbackLane).where(CallbackLane.lane == lane))


def store_failure(session: Session, lane: int, longest: timedelta) -> list[UUID]:
    """The host did not answer. From the third time in a row its lane pauses for 8, 16, 32, ... seconds.

    Returns:
        The requests of callbacks that are given up, because they have waited for `MAX_AGE`.
    """
    failures = insert(CallbackLane).values(lane=lane, failures=1, next_at=func.now())
    failures = failures.on_conflict_do_update(index_elements=["lane"], set_={"failures": CallbackLane.failures + 1})
    count = session.scalar(failures.returning(CallbackLane.failures)) or 0
    if count < PAUSE_AFTER:
        return []
    until = func.now() + min(longest, timedelta(seconds=2 ** min(count, 20)))
    session.execute(update(CallbackLane).where(CallbackLane.lane == lane).values(next_at=until))
    waiting = select(Outbox.id).where(Outbox.lane == lane, Outbox.delivered_at.is_(None), Outbox.next_at < until)
    waiting = waiting.order_by(Outbox.next_at).limit(MAX_PUT_OFF).with_for_update(skip_locked=True)
    put_off = (
        update(Outbox)
        .where(Outbox.id.in_(waiting), Outbox.delivered_at.is_(None))
        .values(next_at=case((Outbox.created_at < func.now() - MAX_AGE, null()), else_=until))
        .returning(Outbox.request_id, Outbox.next_at, Outbox.target)
    )
    rows = session.execute(put_off, execution_options={"synchronize_session": False})
    return [request_id for request_id, next_at, target in rows if next_at is None and target >= 0]


def forget_old(session: Session) -> None:
    """Remove lanes that nothing has been sent to for long: everything that waited for them was given up."""
    session.execute(delete(CallbackLane).where(CallbackLane.next_at < func.now() - 2 * MAX_AGE))
