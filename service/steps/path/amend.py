"""Changes of a request by its submitter: cancel a pending request, extend a deadline."""

from datetime import UTC, datetime
from uuid import UUID

from service.bootstrap import Services
from service.db import log_entries, requests
from service.domain.deadlines import extended
from service.domain.errors import Conflict, NotFound
from service.domain.states import TERMINAL_REQUESTS, RequestStatus


def cancel_request(
    services: Services, request_id: UUID, api_key_id: UUID, reason: str | None = None, *, owner: UUID | None = None
) -> None:
    """Cancel a pending request for the caller with this API key, who may be restricted to requests of `owner`.

    `reason` is a code.

    Raises:
        NotFound: The request does not exist, or another API key made it.
        Conflict: The request is batched or has ended.
    """
    with services.db.transaction("cancel") as session:
        request = requests.by_id(session, request_id, lock=True)  # batching and cancelling cannot both win
        if request is None or owner not in (None, request.api_key_id):
            raise NotFound("There is no such request.")
        if request.status != RequestStatus.PENDING:
            raise Conflict(f"The request is {request.status}; only a pending request can be cancelled.")
        requests.move(session, [request], RequestStatus.CANCELLED, reason=reason)
        said = {"key": str(api_key_id), **log_entries.optional_reason(reason)}
        log_entries.append(session, "request.cancelled", ref=request.ref, **said)
    services.queue.wake("deliver")


def extend_deadline(
    services: Services, request_id: UUID, reason: str, api_key_id: UUID, *, owner: UUID | None = None
) -> None:
    """Extend a deadline, once, for the caller with this API key, who may be restricted to requests of `owner`.

    The controller must tell the person why before the first deadline (GDPR 12(3)).

    Raises:
        NotFound: The request does not exist, or another API key made it.
        Conflict: The request has ended, was extended before, or its deadline has passed.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or owner not in (None, request.api_key_id):
            raise NotFound("There is no such request.")
        if request.status in TERMINAL_REQUESTS or request.extended_at or request.due_at < datetime.now(UTC):
            raise Conflict("The deadline of an open request can be extended once, before it has passed.")
        request.due_at = extended(request.due_at, request.regulation)
        request.extended_at, request.extension_reason = datetime.now(UTC), reason
        due, key = request.due_at.date().isoformat(), str(api_key_id)
        log_entries.append(session, "request.extended", ref=request.ref, due=due, reason=reason, key=key)
