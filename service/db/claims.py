"""Which job a worker takes next: PostgreSQL is the queue, and messages only say that there may be something in it."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from service.db import leases
from service.db.jobs import claimable
from service.db.pending_requests import BATCHABLE
from service.db.tables import DeletionRequest, Job
from service.domain.states import TERMINAL_STAGES, Stage


def is_any(session: Session, stages: frozenset[Stage], memory: int | None = None) -> bool:
    """Whether a job could be claimed, though somebody may have locked it right now."""
    return session.scalar(select(Job.id).where(*claimable(stages), leases.fits(Job, memory)).limit(1)) is not None


def most_urgent(session: Session, stages: frozenset[Stage], memory: int | None = None) -> UUID | None:
    """The claimable job with the earliest deadline, of all models, locked; None if there is none.

    A job that was too large for a slot of as much `memory` (bytes), or more, is left to others.

    A job is as urgent as what waits behind it: its model has no other job until it ends. A job that another worker is
    about to claim is passed over, so that no worker waits for another.
    """
    request = DeletionRequest
    own = select(func.min(request.due_at)).where(request.job_id == Job.id).scalar_subquery()
    # The first entry of an index from this model on; it may be another model's. With `=` in place of `>=`, PostgreSQL
    # may walk through the deadlines of all models until one is this model's.
    pending = select(request.model_id, request.due_at).where(request.model_id >= Job.model_id, BATCHABLE)
    first = pending.order_by(request.model_id, request.due_at).limit(1).correlate(Job).lateral()
    behind = select(case((first.c.model_id == Job.model_id, first.c.due_at))).correlate(Job).scalar_subquery()
    query = select(Job.id).where(*claimable(stages), leases.fits(Job, memory))
    query = query.order_by(func.least(own, behind), Job.seq).limit(1)
    return session.scalar(query.with_for_update(skip_locked=True, of=Job))


def forget_outgrown(session: Session, largest: int, *, quiet_seconds: float) -> None:
    """Let any worker try a job that has outgrown every slot that lives, after a while: else nobody would end it."""
    quiet = Job.progress_at < func.now() - timedelta(seconds=quiet_seconds)
    waits = Job.stage.not_in(TERMINAL_STAGES), Job.owner.is_(None), Job.outgrew >= largest
    session.execute(update(Job).where(*waits, quiet).values(outgrew=None))
