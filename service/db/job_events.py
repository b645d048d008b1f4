"""Events of jobs: stored, announced to listeners, and read again."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import JobEvent
from service.domain.json_types import JsonObject

CHANNEL = "unlearnd_jobs"
STEPS = ("stage", "retry", "done")  # events that say where a job was, and not how training went


def add(session: Session, job_id: UUID, kind: str, data: JsonObject) -> None:
    """Store an event and notify the listeners of the job."""
    session.add(JobEvent(job_id=job_id, kind=kind, data=data))
    notify(session, job_id)


def notify(session: Session, job_id: UUID) -> None:
    """Notify the listeners of this job, at commit."""
    session.execute(select(func.pg_notify(CHANNEL, str(job_id))))


def after(session: Session, job_id: UUID, last: int) -> list[JobEvent]:
    """The events of a job after id `last`."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > last).order_by(JobEvent.id)
    return list(session.scalars(query))


def history(session: Session, job_id: UUID) -> list[JsonObject]:
    """The epochs of a job, from its events; an epoch that a resumed attempt repeated counts once."""
    query = select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.kind == "epoch").order_by(JobEvent.id)
    return list({data["epoch"]: data for data in session.scalars(query)}.values())


def steps(session: Session, job_id: UUID, kinds: Sequence[str], most: int) -> list[JobEvent]:
    """The newest events of these kinds of a job, the oldest of them first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind.in_(kinds))
    return list(session.scalars(query.order_by(JobEvent.id.desc()).limit(most)))[::-1]
