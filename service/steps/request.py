"""request: take a deletion request in, durably and once; cancel it while it is pending."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from service.app import Services
from service.audit.canonical import dumps
from service.audit.receipt import RECEIPT_TYPE, receipt_payload
from service.db import audit, jobs, requests
from service.db.tables import DeletionRequest
from service.domain.deadlines import due_at, extended
from service.domain.errors import Conflict, Invalid, NotFound
from service.domain.records import check_records
from service.domain.states import TERMINAL_REQUESTS, RequestStatus
from service.privacy import commitments
from service.privacy.envelope import Envelope

CLOCK_SKEW = timedelta(minutes=1)
OLDEST = timedelta(days=3653)
STORED = (
    "id", "regulation", "received_at", "due_at", "accepted_at", "records_count", "ref", "commitment", "supplements",
    "wrapped_key", "subject_ref", "callback_url",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Submission:
    """What a submitter sent, checked for form."""

    model: str
    texts: Sequence[str]
    subject_ref: str | None
    regulation: str
    received_at: datetime | None
    callback_url: str | None
    resubmits: "Resubmission | None" = None


@dataclass(frozen=True, slots=True)
class Resubmission:
    """That the texts are those of an earlier request: its ref, and the nonces of its receipt."""

    ref: str
    nonces: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The stored request and the openings of its commitments."""

    request: DeletionRequest
    model: str
    nonces: list[bytes]
    texts: list[bytes]
    receipt: bytes = b""


def accept(services: Services, submission: Submission, api_key_id: UUID, idempotency_key: str | None) -> Accepted:
    """Store the request, its sealed records and an audit entry in one transaction, then wake batching.

    The same Idempotency-Key from the same API key gives the request it made the first time.

    Raises:
        Conflict: The Idempotency-Key was used for a request that was purged since.
        Invalid: Names the field; also if the Idempotency-Key was used with another body.
        NotFound: No such model.
    """
    settings, now = services.settings, datetime.now(UTC)
    check_records(submission.texts, max_records=settings.max_records, max_record_bytes=settings.max_record_bytes)
    if submission.received_at and submission.received_at > now + CLOCK_SKEW:
        raise Invalid("The time lies in the future.", field="received_at")
    if submission.received_at and submission.received_at.replace(tzinfo=UTC) < now - OLDEST:
        raise Invalid("The time lies more than ten years back.", field="received_at")
    if submission.resubmits:
        _check_resubmission(services, submission, submission.resubmits)
    body = services.wrapper.keyed_hash("body", _body(submission))
    key = services.wrapper.keyed_hash("idempotency", idempotency_key.encode()) if idempotency_key else None
    accepted, sealed = _sealed_up(services, submission, now)
    request = accepted.request
    values = {
        "model": submission.model, "api_key_id": api_key_id, "idempotency_hash": key, "body_hash": body,
        **{name: getattr(request, name) for name in STORED},
    }  # fmt: skip
    entry = audit.entry_of(
        "request.accepted",
        ref=request.ref,
        commitment=request.commitment.hex(),
        model=submission.model,
        due=request.due_at.date().isoformat(),
        **({"supplements": request.supplements} if request.supplements else {}),
    )
    accepted = replace(accepted, receipt=_receipt(services, accepted))  # before it is kept: it is promised with it
    model_id = requests.add(services.db, values, sealed, entry)
    if model_id is None:
        with services.db.reading() as session:  # this key made a request before, or there is no such model
            found = requests.by_idempotency(session, api_key_id, key) if key else None
        if found is None:
            raise Invalid("There is no model of that name.", field="model", code="unknown_model")
        return _same(services, found, body)
    services.queue.wake("batch", model_id)
    return accepted


def _body(submission: Submission) -> bytes:
    received = submission.received_at.isoformat() if submission.received_at else None
    return dumps(
        [
            submission.model, list(submission.texts), submission.subject_ref, submission.regulation, received,
            submission.callback_url,
            *([submission.resubmits.ref] if submission.resubmits else ()),
        ]
    )  # fmt: skip


def _check_resubmission(services: Services, submission: Submission, earlier: Resubmission) -> None:
    """The texts and nonces open the commitment of the earlier request, to the byte."""
    with services.db.reading() as session:
        request = requests.by_ref(session, earlier.ref)
    texts = [text.encode() for text in submission.texts]
    if request is not None and len(texts) == len(earlier.nonces) and request.model.name == submission.model:
        opened = [commitments.commit(nonce, text) for nonce, text in zip(earlier.nonces, texts, strict=True)]
        if commitments.request_commitment(earlier.ref, opened) == request.commitment:
            return
    raise Invalid("The texts and nonces are not those of that request.", field="resubmits", code="other_texts")


def _sealed_up(services: Services, submission: Submission, now: datetime) -> tuple[Accepted, list[bytes]]:
    """The request to be stored and its sealed records, each behind the nonce of its commitment."""
    request_id, ref = uuid4(), uuid4().hex
    envelope, wrapped = Envelope.create(request_id, services.wrapper)
    texts = [text.encode() for text in submission.texts]
    nonces = [commitments.new_nonce() for _ in texts]
    records = [commitments.commit(nonce, text) for nonce, text in zip(nonces, texts, strict=True)]
    received = submission.received_at or now
    request = DeletionRequest(
        id=request_id, status=RequestStatus.PENDING, regulation=submission.regulation, received_at=received,
        due_at=due_at(received, submission.regulation), accepted_at=now, records_count=len(texts), ref=ref,
        commitment=commitments.request_commitment(ref, records), wrapped_key=wrapped,
        supplements=submission.resubmits.ref if submission.resubmits else None,
        subject_ref=_sealed(envelope, "subject_ref", submission.subject_ref),
        callback_url=_sealed(envelope, "callback_url", submission.callback_url),
    )  # fmt: skip
    sealed = [envelope.seal(f"record/{i}", n + t) for i, (n, t) in enumerate(zip(nonces, texts, strict=True))]
    return Accepted(request, submission.model, nonces, texts), sealed


def _sealed(envelope: Envelope, item: str, value: str | None) -> bytes | None:
    return envelope.seal(item, value.encode()) if value is not None else None


def _same(services: Services, request: DeletionRequest, body: bytes) -> Accepted:
    """The request that this Idempotency-Key made before, receipt included.

    Raises:
        Conflict: Its texts were purged: whether this is the same body cannot be told any more.
        Invalid: It was made with another body.
    """
    if request.wrapped_key is None:
        raise Conflict("This Idempotency-Key was used for a request whose texts were purged since.")
    if request.body_hash != body:
        raise Invalid(
            "This Idempotency-Key was used with another body.",
            field="Idempotency-Key",
            code="idempotency_key_reused",
        )
    opened = open_records(services, request)
    found = Accepted(request, request.model.name, [nonce for nonce, _ in opened], [text for _, text in opened])
    return replace(found, receipt=_receipt(services, found))


def _receipt(services: Services, accepted: Accepted) -> bytes:
    """The receipt: a DSSE envelope with the openings of the request's commitment; made at intake, kept nowhere."""
    request = accepted.request
    opened = [commitments.commit(n, t) for n, t in zip(accepted.nonces, accepted.texts, strict=True)]
    payload = receipt_payload(
        issuer=services.settings.issuer, ref=request.ref, model=accepted.model, commitment=request.commitment,
        nonces=accepted.nonces, commitments=opened, checkpoint=services.log.note(),
        times={name: getattr(request, name) for name in ("received_at", "accepted_at", "due_at")},
    )  # fmt: skip
    return services.keyring.sign("receipt", payload, RECEIPT_TYPE)


def open_records(services: Services, request: DeletionRequest) -> list[tuple[bytes, bytes]]:
    """(nonce, text) of each record of a request; in memory only."""
    if request.wrapped_key is None:
        raise NotFound("The request's texts were purged.")
    envelope = Envelope.unwrap(request.id, request.wrapped_key, services.wrapper)
    opened = [envelope.open(f"record/{r.position}", r.sealed) for r in request.records]
    return [(data[: commitments.NONCE], data[commitments.NONCE :]) for data in opened]


def cancel(services: Services, request_id: UUID) -> None:
    """Cancel a pending request.

    Raises:
        NotFound: No such request.
        Conflict: It is batched or ended already.
    """
    with services.db.transaction("cancel") as session:
        request = requests.by_id(session, request_id)
        if request is None:
            raise NotFound("There is no such request.")
        if not requests.cancel(session, request_id):
            session.refresh(request)
            raise Conflict(f"The request is {request.status}; only a pending one can be cancelled.")
        audit.append(session, "request.cancelled", ref=request.ref)
    services.queue.wake("deliver")


def extend(services: Services, request_id: UUID, reason: str) -> None:
    """Extend a deadline for the controller, who has told the person why within the first (GDPR 12(3)); once.

    Raises:
        NotFound: No such request.
        Conflict: It has ended, was extended before, or its deadline has passed.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None:
            raise NotFound("There is no such request.")
        if request.status in TERMINAL_REQUESTS or request.extended_at or request.due_at < datetime.now(UTC):
            raise Conflict("Only the deadline of an open request can be extended, before it has passed, and once.")
        request.due_at = extended(request.due_at, request.regulation)
        request.extended_at, request.extension_reason = datetime.now(UTC), reason
        audit.append(session, "request.extended", ref=request.ref, due=request.due_at.date().isoformat(), reason=reason)


def retry(services: Services, request_id: UUID) -> None:
    """Put a failed request back in line; its deadline stands.

    Raises:
        NotFound: No such request.
        Conflict: It has not failed.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None:
            raise NotFound("There is no such request.")
        if request.status != RequestStatus.FAILED:
            raise Conflict(f"The request is {request.status}; only a failed one can be tried again.")
        _again(session, [request])
    services.queue.wake("batch", request.model_id)


def retry_job(services: Services, job_id: UUID) -> tuple[str, list[DeletionRequest]]:
    """Put every failed request of a job that was given up, or failed its tests, back in line.

    Returns:
        The model's name, and the requests.

    Raises:
        NotFound: No such job.
        Conflict: No request of it has failed.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        if job is None:
            raise NotFound("There is no such job.")
        failed = [r for r in requests.of_job(session, job_id, lock=True) if r.status == RequestStatus.FAILED]
        if not failed:
            raise Conflict(f"The job is {job.stage}; it has no failed request to try again.")
        _again(session, failed)
    services.queue.wake("batch", job.model_id)
    return job.model.name, failed


def _again(session: Session, failed: Sequence[DeletionRequest]) -> None:
    requests.move(session, failed, RequestStatus.PENDING, job_id=None, verdict=None, reason=None)
    for request in failed:
        request.finished_at = None
    for request in failed:
        audit.append(session, "request.retried", ref=request.ref)
