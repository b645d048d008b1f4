"""retry: what has failed is put back in line, once whoever is responsible has removed the reason."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import jobs, log_entries, requests
from service.db.tables import DeletionRequest
from service.domain.errors import Conflict, NotFound
from service.domain.states import RequestStatus


def retry_request(services: Services, request_id: UUID) -> None:
    """Put a failed request back in line; its deadline stands.

    Raises:
        NotFound: No such request.
        Conflict: It has not failed, or its texts are gone.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None:
            raise NotFound("There is no such request.")
        if request.status != RequestStatus.FAILED:
            raise Conflict(f"The request is {request.status}; only a failed one can be tried again.")
        if request.wrapped_key is None:
            raise Conflict("The request's texts were purged: there is nothing to try again.")
        _retry(session, [request])
    services.queue.wake("batch", request.model_id)


def retry_job(services: Services, job_id: UUID) -> tuple[str, list[DeletionRequest]]:
    """Put every failed request of a job that was given up, or failed its tests, back in line.

    Returns:
        The model's name, and the requests.

    Raises:
        NotFound: No such job.
        Conflict: No request of it has failed and has its texts still.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        if job is None:
            raise NotFound("There is no such job.")
        members = requests.of_job(session, job_id, lock=True)
        failed = [r for r in members if r.status == RequestStatus.FAILED and r.wrapped_key is not None]
        if not failed:
            raise Conflict(f"The job is {job.stage}; it has no failed request whose texts are still there.")
        _retry(session, failed)
    services.queue.wake("batch", job.model_id)
    return job.model.name, failed


def _retry(session: Session, failed: Sequence[DeletionRequest]) -> None:
    requests.move(session, failed, RequestStatus.PENDING, job_id=None, verdict=None, reason=None)
    for request in failed:
        log_entries.append(session, "request.retried", ref=request.ref)
