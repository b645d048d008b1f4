"""`/v1/deletion-requests`: submit, follow, extend, cancel, retry and resolve deletion requests."""

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.api.deps import (
    SEES_ALL_REQUESTS,
    Admin,
    RequestReader,
    ServicesDep,
    Submitter,
    restricted_to,
    sees_counts,
    services_from,
)
from service.api.guard import GuardedRoute, SubmissionRoute
from service.api.limits import admission_from
from service.api.paging import Cursor, Limit, ModelFilter, filtered_model
from service.bootstrap import Services
from service.db import api_keys, outbox, request_list, requests
from service.db.api_keys import Caller
from service.db.tables import DeletionRequest
from service.domain.errors import NotFound
from service.domain.states import Hold, RequestStatus
from service.domain.submission import CallbackTarget, ProbeText, Resubmission, Submission
from service.privacy.records import open_reference, reference_hash
from service.schemas.base import Listing
from service.schemas.requests import (
    CallbackOut,
    CancelReason,
    DecisionOut,
    ExtensionIn,
    Receipt,
    RecordOpening,
    Regulation,
    RequestAccepted,
    RequestDetail,
    RequestIn,
    RequestOut,
    ResolutionIn,
    RetryReason,
)
from service.sealing import Accepted
from service.steps.operator.resolve import resolve_failed_request
from service.steps.operator.retry import retry_request
from service.steps.path.amend import cancel_request, extend_deadline
from service.steps.path.request import accept_at_once, accept_request
from service.steps.upkeep.purge import purge_request

PREFIX, TAGS = "/v1/deletion-requests", ["deletion requests"]
submit_router = APIRouter(prefix=PREFIX, tags=[*TAGS], route_class=SubmissionRoute)
router = APIRouter(prefix=PREFIX, tags=[*TAGS], route_class=GuardedRoute)
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=255, description="repeating a key returns the first request"
    ),
]


def to_request_out(services: Services, request: DeletionRequest, model: str, caller: Caller) -> RequestOut:
    """The answer for a request to the model of this name. To open a reference may take a call of the KMS."""
    return _request_out(request, model, caller, open_reference(services.wrapper, request))


def _request_out(request: DeletionRequest, model: str, caller: Caller, reference: str | None) -> RequestOut:
    """The answer for a request.

    How many records a search has matched is a fact about training data. A submitter learns only whether it is 0.
    """
    searched, exact = request.results_count or 0, sees_counts(caller)
    return RequestOut(
        id=request.id,
        status=request.status,
        model=model,
        job_id=request.job_id,
        verdict=request.verdict,
        version=request.version,
        reason=request.reason,
        regulation=request.regulation,
        records=request.records_count - (0 if exact else searched),
        ref=request.ref,
        reference=reference,
        received_at=request.received_at,
        due_at=request.due_at,
        accepted_at=request.accepted_at,
        finished_at=request.finished_at,
        extension_reason=request.extension_reason,
        resolved_at=request.resolved_at,
        resolved_reason=request.resolved_reason,
        waits_for=request.hold if request.status == RequestStatus.PENDING else None,
        results_count=request.results_count if exact or not searched else None,
        searched=request.resolution.get("searched") if request.resolution else None,
    )


@submit_router.post("", status_code=202, response_model=RequestAccepted)
async def submit(
    body: RequestIn, http_request: Request, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Accept a deletion request. After the answer 202 the request is durable and will reach a terminal state.

    Default limits: 256 records, 65,536 bytes of UTF-8 per record, 8 MiB per body.
    """
    given = (services_from(http_request), to_submission(body), caller.id, idempotency_key)
    accepted = await accept_at_once(*given)
    if accepted is None:
        admission = admission_from(http_request)
        async with admission.turns.turn(str(caller.id)):
            accepted = await run_in_threadpool(accept_request, *given)
    request_out = _request_out(accepted.request, accepted.model, caller, body.reference)
    answer = RequestAccepted(**dict(request_out), receipt=to_receipt(accepted))
    headers = {"Location": f"{PREFIX}/{accepted.request.id}"}
    return Response(answer.model_dump_json(), 202, headers, media_type="application/json")


def to_receipt(accepted: Accepted) -> Receipt:
    """The receipt of an accepted request."""
    return Receipt(
        ref=accepted.request.ref,
        commitment=accepted.request.commitment.hex(),
        records=[
            RecordOpening(commitment=commitment.hex(), nonce=nonce.hex())
            for nonce, commitment in zip(accepted.nonces, accepted.commitments, strict=True)
        ],
        signed=json.loads(accepted.receipt),
    )


def to_submission(body: RequestIn) -> Submission:
    """The submission in a body."""
    resubmits = body.resubmits
    return Submission(
        body.model,
        [record.text for record in body.records],
        body.regulation,
        body.received_at,
        subject=body.subject.to_subject() if body.subject else None,
        subject_ref=body.subject_ref,
        reference=body.reference,
        callbacks=[CallbackTarget(str(body.callback_url))] if body.callback_url else (),
        resubmits=Resubmission(resubmits.ref, [bytes.fromhex(nonce) for nonce in resubmits.nonces])
        if resubmits
        else None,
        probes=[ProbeText(probe.prompt, probe.secret) for probe in body.probes],
    )


@router.get("")
def listing(
    services: ServicesDep,
    caller: RequestReader,
    status: RequestStatus | None = None,
    model: ModelFilter = None,
    job: UUID | None = None,
    regulation: Regulation | None = None,
    waits_for: Annotated[Hold | None, Query(description="what pending requests wait for")] = None,
    owed: Annotated[bool | None, Query(description="open, or failed and neither retried nor resolved")] = None,
    due_before: Annotated[AwareDatetime | None, Query(description="RFC 3339")] = None,
    received_from: Annotated[AwareDatetime | None, Query(description="RFC 3339")] = None,
    received_before: Annotated[AwareDatetime | None, Query(description="RFC 3339")] = None,
    reference: Annotated[str | None, Query(max_length=200, description="the submitter's case number")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[RequestOut]:
    """Requests, newest first. An API key that may only submit sees its own requests."""
    api_key_id = restricted_to(caller, *SEES_ALL_REQUESTS)
    with services.db.reading() as session:
        filters = request_list.Filters(
            status=status,
            model_id=filtered_model(session, model),
            job_id=job,
            regulation=regulation,
            waits_for=waits_for,
            owed=owed,
            due_before=due_before,
            received_from=received_from,
            received_before=received_before,
            api_key_id=api_key_id,
            reference_hashes=_reference_hashes(services, session, api_key_id, reference),
        )
        page = request_list.listing(session, cursor, limit, filters)
    items = [to_request_out(services, request, request.model.name, caller) for request in page.items]
    return Listing(items=items, next_cursor=page.next_cursor)


def _reference_hashes(
    services: Services, session: Session, api_key_id: UUID | None, reference: str | None
) -> list[bytes] | None:
    """The hashes of a reference among the requests of one API key, or of each API key."""
    if reference is None:
        return None
    submitters = [api_key_id] if api_key_id else api_keys.ids(session)
    return [reference_hash(services.wrapper, submitter, reference) for submitter in submitters]


@router.get("/{request_id}")
def get(request_id: UUID, services: ServicesDep, caller: RequestReader) -> RequestDetail:
    """One request. API keys with `approve` or `admin`, or with `audit` and another, see who decided on it."""
    request = visible_request(services, request_id, caller)
    decisions = None
    with services.db.reading() as session:
        rows = outbox.callbacks(session, request_id) if request.callbacks else []
        callbacks = [CallbackOut(**row._asdict()) for row in rows]
        if sees_counts(caller):  # who sees the counts sees the decisions
            decisions = [DecisionOut(**row._asdict()) for row in requests.decisions(session, request_id)]
    return RequestDetail(
        **dict(to_request_out(services, request, request.model.name, caller)),
        purged=request.wrapped_key is None,
        searched_at=request.searched_at,
        callbacks=callbacks,
        decisions=decisions,
    )


def visible_request(services: Services, request_id: UUID, caller: Caller) -> DeletionRequest:
    """A request that the caller may see.

    Raises:
        NotFound: There is no such request, or the caller may not see it.
    """
    with services.db.reading() as session:
        request = requests.by_id(session, request_id)
    if request is None or restricted_to(caller, *SEES_ALL_REQUESTS) not in (None, request.api_key_id):
        raise NotFound("There is no such request.")
    return request


@router.delete("/{request_id}")
def cancel(
    request_id: UUID, services: ServicesDep, caller: Submitter, reason: CancelReason | None = None
) -> RequestDetail:
    """Cancel a pending request. A request that was batched gives a 409."""
    cancel_request(services, request_id, caller.id, reason, owner=restricted_to(caller))
    return get(request_id, services, caller)


@router.post("/{request_id}/extend")
def extend(request_id: UUID, body: ExtensionIn, services: ServicesDep, caller: Submitter) -> RequestDetail:
    """Extend an open request's deadline once, by two months (GDPR, article 12(3)) or 45 days (CCPA).

    The transparency log gets an entry.
    """
    extend_deadline(services, request_id, body.reason, caller.id, owner=restricted_to(caller))
    return get(request_id, services, caller)


@router.post("/{request_id}/retry", status_code=202)
def retry(request_id: UUID, services: ServicesDep, caller: Admin, reason: RetryReason | None = None) -> RequestDetail:
    """Make a failed request pending again, once an operator has removed the cause."""
    retry_request(services, request_id, caller.id, reason)
    return get(request_id, services, caller)


@router.post("/{request_id}/purge")
def purge(request_id: UUID, services: ServicesDep, caller: Admin) -> RequestDetail:
    """Purge the texts of a request that has ended, before its time. A purged request cannot be retried or tested."""
    purge_request(services, request_id, caller.id)
    return get(request_id, services, caller)


@router.post("/{request_id}/resolve")
def resolve(request_id: UUID, body: ResolutionIn, services: ServicesDep, caller: Admin) -> RequestOut:
    """Record that a failed request was dealt with in another way. Until then it stays due, and alarms.

    The transparency log gets an entry.
    """
    resolve_failed_request(services, request_id, caller.id, body.reason)
    return get(request_id, services, caller)
