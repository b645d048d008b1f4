"""cancel: stop a job before its result is certified."""

from uuid import UUID

from service.bootstrap import Services
from service.db import jobs, log_entries
from service.domain.errors import Conflict, NotFound
from service.domain.states import COMPUTE_STAGES
from service.lease import quarantine_job

REASON = "cancelled"


def cancel_job(services: Services, job_id: UUID, api_key_id: UUID) -> None:
    """Quarantine a job and fail its open requests, which can be retried.

    The job loses its owner, so a worker that holds it writes nothing more, and stops at its next heartbeat at the
    latest.

    Raises:
        NotFound: The job does not exist.
        Conflict: The job has ended, or its result is being certified.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id, lock=True)
        if job is None:
            raise NotFound("There is no such job.")
        if job.stage not in COMPUTE_STAGES:
            raise Conflict(f"The job is in the stage {job.stage}; it can be cancelled before that of certification.")
        quarantine_job(session, job, REASON, services.settings.max_split_jobs)
        log_entries.append(session, "job.cancelled", job=str(job_id), key=str(api_key_id))
    services.queue.wake("deliver")
    services.queue.wake("batch", job.model_id)
