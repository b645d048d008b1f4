"""Which job a worker takes next: PostgreSQL is the queue, and messages only say that there may be something in it."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.jobs import claimable
from service.db.tables import DeletionRequest, Job
from service.domain.states import Stage


def most_urgent(session: Session, stages: frozenset[Stage]) -> UUID | None:
    """The claimable job with the earliest deadline, of all models, locked; None if there is none.

    A job is as urgent as what waits behind it: its model has no other job until it ends. A job that another worker is
    about to claim is passed over, so that no worker waits for another.
    """
    own = select(func.min(DeletionRequest.due_at)).where(DeletionRequest.job_id == Job.id).scalar_subquery()
    query = select(Job.id).where(*claimable(stages)).order_by(func.least(own, Job.next_due_at), Job.seq).limit(1)
    return session.scalar(query.with_for_update(skip_locked=True, of=Job))
