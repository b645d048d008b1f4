"""The job of a model that waits for its first worker: requests may join it."""

from uuid import UUID

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest, Job, Model
from service.domain.states import Stage

# No worker has claimed it yet. A part of a split job holds what it was split for.
TAKES_IN = and_(Job.stage == Stage.QUEUED, Job.fence == 0, Job.split_of.is_(None))


def unclaimed(session: Session, model: Model) -> Job | None:
    """The job of this model that can take in requests. A job keeps its policy: after a change it takes in nobody."""
    job = session.scalar(select(Job).where(Job.model_id == model.id, TAKES_IN))
    return job if job and job.policy == model.policy else None


def lock_unclaimed(session: Session, job_id: UUID) -> bool:
    """Lock a job that can take in requests; false if it cannot any more, or if a worker claims it right now."""
    query = select(Job.id).where(Job.id == job_id, TAKES_IN)
    return session.scalar(query.with_for_update(skip_locked=True)) is not None


def size(session: Session, job_id: UUID) -> tuple[int, int]:
    """How many requests a job holds, and how many records these have."""
    records = func.coalesce(func.sum(DeletionRequest.records_count), 0)
    row = session.execute(select(func.count(), records).where(DeletionRequest.job_id == job_id)).one()
    return row[0], row[1]
