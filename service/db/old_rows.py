"""Deleting rows that nobody needs any more, some at a time: each transaction is short, and what it costs is bounded."""

from datetime import timedelta

from sqlalchemy import Delete, delete, func, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest, Job, JobEvent, Outbox

AT_ONCE = 1000  # rows


def forget_callbacks(session: Session, days: float) -> int:
    """Delete the oldest callbacks and alerts that were delivered, and whose requests ended, so long ago; how many."""
    cutoff = func.now() - timedelta(days=days)
    old = select(Outbox.id).join(DeletionRequest, DeletionRequest.id == Outbox.request_id)
    old = old.where(Outbox.delivered_at < cutoff, DeletionRequest.finished_at < cutoff)
    return _deleted(session, delete(Outbox).where(Outbox.id.in_(old.order_by(Outbox.delivered_at).limit(AT_ONCE))))


def forget_events(session: Session, days: float) -> int:
    """Delete those of the oldest events whose jobs ended so long ago; how many."""
    oldest = select(JobEvent.id, JobEvent.job_id).order_by(JobEvent.id).limit(AT_ONCE).subquery()
    old = select(oldest.c.id).join(Job, Job.id == oldest.c.job_id)
    old = old.where(Job.finished_at < func.now() - timedelta(days=days))
    return _deleted(session, delete(JobEvent).where(JobEvent.id.in_(old)))


def _deleted(session: Session, statement: Delete) -> int:
    """How many rows a statement has deleted."""
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return int(result.rowcount)
