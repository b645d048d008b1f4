"""Matches of a subject: their preview, and the approval of requests that would unlearn them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from service.api.deps import Approver, Previewer, ServicesDep
from service.api.guard import GuardedRoute
from service.api.requests import get
from service.domain.subject import Subject
from service.schemas.requests import RequestDetail, RequestIn
from service.schemas.subjects import ApprovalIn, MatchOut, Preview, RefusalIn
from service.steps.subjects.approve import approve_request, list_matches, reject_request
from service.steps.subjects.preview import preview_request

router = APIRouter(prefix="/v1", tags=["deletion requests"], route_class=GuardedRoute)


@router.post("/deletion-requests:preview")
def preview(body: RequestIn, services: ServicesDep, caller: Previewer) -> Preview:
    """The matches of a subject, without a request. Only API keys with the scope `approve` see texts."""
    subject: Subject = body.subject.to_subject() if body.subject else {"identities": [], "names": []}
    may_read_texts = bool({"approve", "admin"} & set(caller.scopes))
    return preview_request(
        services, caller.id, body.model, subject, body.regulation, body.received_at, texts=may_read_texts
    )


@router.get("/deletion-requests/{request_id}/matches")
def matches(
    request_id: UUID,
    services: ServicesDep,
    _: Approver,
    after: Annotated[int, Query(ge=-1, le=2**63 - 1, description="the last `match` of the previous page")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[MatchOut]:
    """The texts that a request under approval would unlearn, with the beginning of each."""
    return list_matches(services, request_id, after, limit)


@router.post("/deletion-requests/{request_id}/approve")
def approve(request_id: UUID, body: ApprovalIn, services: ServicesDep, caller: Approver) -> RequestDetail:
    """Approve all or some matches of a request that waits for approval. No API key can approve its own request."""
    approve_request(services, request_id, caller.id, body.matches, body.reason)
    return get(request_id, services, caller)


@router.post("/deletion-requests/{request_id}/reject")
def reject(request_id: UUID, body: RefusalIn, services: ServicesDep, caller: Approver) -> RequestDetail:
    """Reject a request that waits for approval."""
    reject_request(services, request_id, caller.id, body.reason)
    return get(request_id, services, caller)
