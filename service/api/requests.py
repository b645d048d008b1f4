"""`/v1/deletion-requests`: submit, follow, cancel."""

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime

from service.api.deps import SEES_ALL_REQUESTS, Admin, Reader, ServicesDep, Submitter, restricted_to, services_from
from service.api.paging import Cursor, Limit
from service.bootstrap import Services
from service.callbacks.dialects import CallbackTarget
from service.db import requests
from service.db.api_keys import Caller
from service.db.tables import DeletionRequest
from service.domain.errors import NotFound
from service.domain.states import RequestStatus
from service.schemas.base import Listing
from service.schemas.requests import ExtensionIn, Receipt, RecordOpening, RequestAccepted, RequestIn, RequestOut
from service.steps.operator.retry import retry_request
from service.steps.path.amend import cancel_request, extend_deadline
from service.steps.path.request import Resubmission, Submission, accept_request

router = APIRouter(prefix="/v1/deletion-requests", tags=["deletion requests"])
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="the same key, the same request"),
]


def shown(request: DeletionRequest, model: str) -> RequestOut:
    """A request as it is answered."""
    return RequestOut(
        id=request.id, status=request.status, model=model, job_id=request.job_id, verdict=request.verdict,
        version=request.version, reason=request.reason, regulation=request.regulation,
        records=request.records_count, ref=request.ref, received_at=request.received_at, due_at=request.due_at,
        accepted_at=request.accepted_at, finished_at=request.finished_at, extension_reason=request.extension_reason,
        waits_for=request.hold if request.status == RequestStatus.PENDING else None,
        results_count=request.results_count, searched=(request.resolution or {}).get("searched"),
    )  # fmt: skip


@router.post("", status_code=202, response_model=RequestAccepted)
def submit(body: RequestIn, asked: Request, key: Submitter, idempotency_key: IdempotencyKey = None) -> Response:
    """Accept a deletion request; once this answers 202 it is durable and will reach a terminal state.

    Limits (defaults): 256 records, 65,536 bytes of UTF-8 a record, 8 MiB a body.
    """
    submission = Submission(
        body.model,
        [record.text for record in body.records],
        body.regulation,
        body.received_at,
        subject=body.subject.model_dump() if body.subject else None,
        subject_ref=body.subject_ref,
        callbacks=[CallbackTarget(str(body.callback_url))] if body.callback_url else (),
        resubmits=Resubmission(body.resubmits.ref, [bytes.fromhex(n) for n in body.resubmits.nonces])
        if body.resubmits
        else None,
    )
    accepted = accept_request(services_from(asked), submission, key.id, idempotency_key)
    openings = [
        RecordOpening(commitment=commitment.hex(), nonce=nonce.hex())
        for nonce, commitment in zip(accepted.nonces, accepted.commitments, strict=True)
    ]
    request = accepted.request
    receipt = Receipt(
        ref=request.ref, commitment=request.commitment.hex(), records=openings, signed=json.loads(accepted.receipt)
    )  # fmt: skip
    answer = RequestAccepted(**dict(shown(request, accepted.model)), receipt=receipt)
    headers = {"Location": f"{router.prefix}/{request.id}"}
    return Response(answer.model_dump_json(), 202, headers, media_type="application/json")


@router.get("")
def listing(
    services: ServicesDep,
    key: Reader,
    status: RequestStatus | None = None,
    model: Annotated[str | None, Query(max_length=63)] = None,
    due_before: Annotated[AwareDatetime | None, Query(description="RFC 3339")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[RequestOut]:
    """Requests, newest first; of a key that may only submit, its own."""
    owner = restricted_to(key, *SEES_ALL_REQUESTS)
    with services.db.reading() as session:
        page = requests.listing(
            session, cursor, limit, status=status, model=model, due_before=due_before, api_key_id=owner
        )
    return Listing(items=[shown(r, r.model.name) for r in page.items], next_cursor=page.next_cursor)


@router.get("/{request_id}")
def get(request_id: UUID, services: ServicesDep, key: Reader) -> RequestOut:
    """One request."""
    request = visible(services, request_id, key)
    return shown(request, request.model.name)


def visible(services: Services, request_id: UUID, key: Caller) -> DeletionRequest:
    """A request that this key may see.

    Raises:
        NotFound: There is none.
    """
    with services.db.reading() as session:
        request = requests.by_id(session, request_id)
    if request is None or restricted_to(key, *SEES_ALL_REQUESTS) not in (None, request.api_key_id):
        raise NotFound("There is no such request.")
    return request


@router.delete("/{request_id}")
def cancel(request_id: UUID, services: ServicesDep, key: Submitter) -> RequestOut:
    """Cancel a request that is still pending; 409 once it is batched."""
    cancel_request(services, request_id, restricted_to(key))
    return get(request_id, services, key)


@router.post("/{request_id}/extend")
def extend(request_id: UUID, body: ExtensionIn, services: ServicesDep, key: Submitter) -> RequestOut:
    """Extend an open request's deadline, once: by two months (GDPR, article 12(3)) or 45 days (CCPA); it is logged."""
    extend_deadline(services, request_id, body.reason, restricted_to(key))
    return get(request_id, services, key)


@router.post("/{request_id}/retry", status_code=202)
def retry(request_id: UUID, services: ServicesDep, key: Admin) -> RequestOut:
    """Put a failed request back in line, for an operator who has removed the reason."""
    retry_request(services, request_id)
    return get(request_id, services, key)
