"""resolve: an operator says how a failed request was dealt with otherwise; its alarms end."""

from datetime import UTC, datetime
from uuid import UUID

from service.bootstrap import Services
from service.db import log_entries, requests
from service.domain.errors import Conflict, NotFound
from service.domain.states import RequestStatus


def resolve_failed_request(services: Services, request_id: UUID, api_key_id: UUID, reason: str) -> None:
    """Record that a failed request was dealt with; its status stays `failed`, and its deadline is no longer watched.

    Raises:
        NotFound: The request does not exist.
        Conflict: The request has not failed, or is resolved already.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None:
            raise NotFound("There is no such request.")
        if request.status != RequestStatus.FAILED:
            raise Conflict(f"The request is {request.status}; only a failed request can be resolved.")
        if request.resolved_at is not None:
            raise Conflict("The request is resolved already.")
        request.resolved_at, request.resolved_reason, request.resolved_by = datetime.now(UTC), reason, api_key_id
        log_entries.append(session, "request.closed", ref=request.ref, key=str(api_key_id), reason=reason)
