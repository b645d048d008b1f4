"""retry: make failed requests pending again, after an operator has removed the reason."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import jobs, log_entries, requests
from service.db.tables import DeletionRequest
from service.domain.errors import Conflict, NotFound
from service.domain.states import RequestStatus


def retry_request(services: Services, request_id: UUID, api_key_id: UUID, reason: str | None = None) -> None:
    """Make a failed request pending again; its deadline stays. `reason` is a code.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request has not failed, or its texts were purged.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None:
            raise NotFound("There is no such request.")
        if request.status != RequestStatus.FAILED:
            raise Conflict(f"The request is {request.status}; only a failed request can be retried.")
        if request.wrapped_key is None:
            raise Conflict("The request's texts were purged: there is nothing to unlearn.")
        _make_pending(session, [request], api_key_id, reason)
    services.queue.wake("batch", request.model_id)


def retry_job(services: Services, job_id: UUID, api_key_id: UUID) -> tuple[str, list[DeletionRequest]]:
    """Make every failed request of a job pending again: the job is quarantined, or failed its tests.

    Returns:
        The model's name, and the requests.

    Raises:
        NotFound: The job does not exist.
        Conflict: The job has no failed request whose texts are still kept.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        if job is None:
            raise NotFound("There is no such job.")
        failed = [
            request
            for request in requests.of_job(session, job_id, lock=True)
            if request.status == RequestStatus.FAILED and request.wrapped_key is not None
        ]
        if not failed:
            raise Conflict(f"The job is {job.stage}; it has no failed request whose texts are still kept.")
        _make_pending(session, failed, api_key_id)
    services.queue.wake("batch", job.model_id)
    return job.model.name, failed


def _make_pending(
    session: Session, failed: Sequence[DeletionRequest], api_key_id: UUID, reason: str | None = None
) -> None:
    """Move failed requests out of their job and back to pending, and log who did that."""
    requests.reopen(session, failed, None)
    said = {"key": str(api_key_id), **log_entries.optional_reason(reason)}
    for request in failed:
        log_entries.append(session, "request.retried", ref=request.ref, **said)
