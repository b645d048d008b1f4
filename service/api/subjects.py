"""People and what they match: preview, and the approval of what a request would unlearn."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from service.api.deps import Approver, Reader, ServicesDep
from service.api.requests import get
from service.schemas.requests import RequestIn, RequestOut
from service.schemas.subjects import ApprovalIn, MatchOut, Preview, RefusalIn
from service.steps.subjects.approve import approve_request, list_matches, preview_request, reject_request

router = APIRouter(prefix="/v1", tags=["deletion requests"])


@router.post("/deletion-requests:preview")
def preview(body: RequestIn, services: ServicesDep, key: Reader) -> Preview:
    """What a request with this subject would match, without making one; texts for keys that may approve alone."""
    subject = body.subject.model_dump() if body.subject else {"identities": [], "names": []}
    readable = bool({"approve", "admin"} & set(key.scopes))
    return Preview(**preview_request(services, body.model, subject, body.regulation, body.received_at, texts=readable))


@router.get("/deletion-requests/{request_id}/matches")
def matches(
    request_id: UUID,
    services: ServicesDep,
    _: Approver,
    after: Annotated[int, Query(ge=-1, le=2**63 - 1, description="the last `match` of the page before")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[MatchOut]:
    """What a request that waits for approval would unlearn, with the beginning of each text."""
    return [MatchOut(**match) for match in list_matches(services, request_id, after, limit)]


@router.post("/deletion-requests/{request_id}/approve")
def approve(request_id: UUID, body: ApprovalIn, services: ServicesDep, key: Approver) -> RequestOut:
    """Approve a request that waits for it, with all or some of its matches; not one of one's own."""
    approve_request(services, request_id, key.id, body.matches)
    return get(request_id, services, key)


@router.post("/deletion-requests/{request_id}/reject")
def reject(request_id: UUID, body: RefusalIn, services: ServicesDep, key: Approver) -> RequestOut:
    """Refuse a request that waits for approval."""
    reject_request(services, request_id, key.id, body.reason)
    return get(request_id, services, key)
