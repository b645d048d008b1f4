"""request: take a deletion request in, durably and once; cancel it while it is pending; extend its deadline."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.app import Services
from service.audit.canonical import dumps
from service.audit.receipt import RECEIPT_TYPE, receipt_payload
from service.connect.calls import Target
from service.db import audit, corpora, models, requests
from service.db.intake import NewRequest
from service.db.tables import DeletionRequest
from service.domain.deadlines import check_received, due_at, extended
from service.domain.errors import Conflict, Invalid, NotFound
from service.domain.records import check_records
from service.domain.states import TERMINAL_REQUESTS, Hold, RequestStatus
from service.privacy import commitments
from service.privacy.envelope import Envelope
from service.privacy.randomness import random_bytes, random_uuid
from service.privacy.records import SUBJECT, open_records, open_subject
from service.subjects.search import check_subject
from service.tracing import traceparent

STORED = (
    "id", "regulation", "received_at", "due_at", "accepted_at", "ref", "commitment", "supplements",
    "wrapped_key", "subject_ref", "callback_url", "callbacks", "dialect", "subject_request_id", "subject",
    "traceparent",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Submission:
    """What a submitter sent, checked for form."""

    model: str
    texts: Sequence[str]
    subject_ref: str | None
    regulation: str
    received_at: datetime | None
    callbacks: Sequence[Target] = ()
    resubmits: "Resubmission | None" = None
    subject: dict[str, Any] | None = None
    dialect: str | None = None
    subject_request_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Resubmission:
    """That the texts are those of an earlier request: its ref, and the nonces of its receipt."""

    ref: str
    nonces: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The stored request and its commitments with their nonces: of the texts, then of the subject's canonical JSON."""

    request: DeletionRequest
    model: str
    nonces: list[bytes]
    commitments: list[bytes]
    receipt: bytes = b""


def accept(services: Services, submission: Submission, api_key_id: UUID, idempotency_key: str | None) -> Accepted:
    """Store the request, its sealed records and an audit entry in one transaction, then wake batching.

    The same Idempotency-Key from the same API key gives the request it made the first time.

    Raises:
        Conflict: The Idempotency-Key was used for a request that was purged since.
        Invalid: Names the field; also if the Idempotency-Key was used with another body.
    """
    settings, now = services.settings, datetime.now(UTC)
    if submission.texts or submission.subject is None:
        check_records(submission.texts, max_records=settings.max_records, max_record_bytes=settings.max_record_bytes)
    body = services.wrapper.keyed_hash("body", _body(submission))
    key = services.wrapper.keyed_hash("idempotency", idempotency_key.encode()) if idempotency_key else None
    if submission.subject is not None and (made := _made_before(services, submission, api_key_id, key)):
        return _same(services, made, body)
    if submission.received_at:
        check_received(submission.received_at, now)
    if submission.resubmits:
        _check_resubmission(services, submission, submission.resubmits)
    accepted, sealed = _sealed_up(services, submission, now)
    request = accepted.request
    values = {
        "model": submission.model, "api_key_id": api_key_id, "idempotency_hash": key, "body_hash": body,
        **{name: getattr(request, name) for name in STORED},
    }  # fmt: skip
    entry = audit.entry_of(
        "request.accepted", ref=request.ref, commitment=request.commitment.hex(), model=submission.model,
        due=request.due_at.date().isoformat(),
        **({"supplements": request.supplements} if request.supplements else {}),
    )  # fmt: skip
    accepted = replace(accepted, receipt=_receipt(services, accepted))  # before it is kept: it is promised with it
    added = services.intake(NewRequest(values, sealed, entry))
    if added is None:
        return _same(services, _in_the_way(services, submission, api_key_id, key), body)
    model_id, request.hold = added
    if request.hold == Hold.RESOLVE:
        services.queue.wake("resolve", request.id)
    else:
        services.queue.wake("batch", model_id)
    return accepted


def _in_the_way(services: Services, submission: Submission, api_key_id: UUID, key: bytes | None) -> DeletionRequest:
    """The request that this key made before, for which nothing was stored now.

    Raises:
        Invalid: It was for another reason; names the field.
    """
    used = submission.subject_request_id
    with services.db.reading() as session:
        found = requests.by_idempotency(session, api_key_id, key) if key else None
        others = found is None and used is not None and requests.by_subject_request(session, used) is not None
    if others:
        raise Invalid("Another controller used this id.", field="subject_request_id", code="id_in_use")
    if found is None:
        raise Invalid("There is no model of that name.", field="model", code="unknown_model")
    return found


def _made_before(
    services: Services, submission: Submission, api_key_id: UUID, key: bytes | None
) -> DeletionRequest | None:
    """If nobody could be looked up now: the request that this key made before, which is the same still.

    Raises:
        Invalid: Nobody could be, and there is none.
    """
    try:
        _check_subject(services, submission)
    except Invalid:
        with services.db.reading() as session:
            found = requests.by_idempotency(session, api_key_id, key) if key else None
        if found is None:
            raise
        return found
    return None


def _check_subject(services: Services, submission: Submission) -> None:
    """What names a person can be looked up, and somewhere: where nothing is searched, nothing found would be a lie."""
    subject = submission.subject
    assert subject is not None
    check_subject(services.wrapper, subject)
    with services.db.reading() as session:
        model = models.by_name(session, submission.model)
        held = corpora.of_model(session, model.id) if model is not None else []
        if model is not None and not held:
            raise Invalid(
                "The model has no corpus to look anybody up in: submit the texts, or register its corpora.",
                field="subject", code="no_corpora",
            )  # fmt: skip
        found_by = {"email", "phone"}.union(*(corpus.columns.values() for corpus in held))
        asked = {identity["type"] for identity in subject["identities"]}
        if held and asked and not (asked & found_by or subject["names"] or submission.texts):
            raise Invalid(
                "No corpus of the model has identifiers of this type: name the column that holds them.",
                field="subject.identities.0.type", code="type_not_indexed",
            )  # fmt: skip


def _body(submission: Submission) -> bytes:
    received = submission.received_at.isoformat() if submission.received_at else None
    return dumps(
        [
            submission.model, list(submission.texts), submission.subject_ref, submission.regulation, received,
            _targets(submission.callbacks),
            *([submission.resubmits.ref] if submission.resubmits else ()),
            *([submission.subject] if submission.subject else ()),
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
    request_id, ref = random_uuid(), random_uuid().hex
    envelope, wrapped = Envelope.create(request_id, services.wrapper)
    texts = [text.encode() for text in submission.texts]
    subject = [dumps(submission.subject)] if submission.subject is not None else []
    nonces = [random_bytes(commitments.NONCE) for _ in (*texts, *subject)]
    records = [commitments.commit(nonce, text) for nonce, text in zip(nonces, [*texts, *subject], strict=True)]
    received = submission.received_at or now
    request = DeletionRequest(
        id=request_id, status=RequestStatus.PENDING, regulation=submission.regulation, received_at=received,
        due_at=due_at(received, submission.regulation), accepted_at=now, records_count=len(texts), ref=ref,
        commitment=commitments.request_commitment(ref, records), wrapped_key=wrapped,
        supplements=submission.resubmits.ref if submission.resubmits else None,
        subject_ref=_sealed(envelope, "subject_ref", submission.subject_ref),
        callback_url=_sealed(envelope, "callback_url", _targets(submission.callbacks)),
        callbacks=len(submission.callbacks), dialect=submission.dialect,
        subject_request_id=submission.subject_request_id,
        subject=envelope.seal(SUBJECT, nonces[-1] + subject[0]) if subject else None, traceparent=traceparent(),
    )  # fmt: skip
    sealed = [envelope.seal(f"record/{i}", n + t) for i, (n, t) in enumerate(zip(nonces, texts, strict=False))]
    return Accepted(request, submission.model, nonces, records), sealed


def _targets(callbacks: Sequence[Target]) -> str | None:
    """Whom to call, to be sealed."""
    return json.dumps([asdict(target) for target in callbacks]) if callbacks else None


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
    opened = open_records(services.wrapper, request)[: request.records_count - (request.results_count or 0)]
    subject = open_subject(services.wrapper, request)
    opened += [subject] if subject else []
    committed = [commitments.commit(nonce, text) for nonce, text in opened]
    found = Accepted(request, request.model.name, [nonce for nonce, _ in opened], committed)
    return replace(found, receipt=_receipt(services, found))


def _receipt(services: Services, accepted: Accepted) -> bytes:
    """The receipt: a DSSE envelope with the openings of the request's commitment; made at intake, kept nowhere."""
    request = accepted.request
    payload = receipt_payload(
        issuer=services.settings.issuer, ref=request.ref, model=accepted.model, commitment=request.commitment,
        nonces=accepted.nonces, commitments=accepted.commitments, checkpoint=services.log.note(),
        times={name: getattr(request, name) for name in ("received_at", "accepted_at", "due_at")},
    )  # fmt: skip
    return services.keyring.sign("receipt", payload, RECEIPT_TYPE)


def cancel(services: Services, request_id: UUID, owner: UUID | None = None) -> None:
    """Cancel a pending request.

    Raises:
        NotFound: No such request, or not one of `owner`'s.
        Conflict: It is batched or ended already.
    """
    with services.db.transaction("cancel") as session:
        request = requests.by_id(session, request_id)
        if request is None or owner not in (None, request.api_key_id):
            raise NotFound("There is no such request.")
        if not requests.cancel(session, request_id):
            session.refresh(request)
            raise Conflict(f"The request is {request.status}; only a pending one can be cancelled.")
        audit.append(session, "request.cancelled", ref=request.ref)
    services.queue.wake("deliver")


def extend(services: Services, request_id: UUID, reason: str, owner: UUID | None = None) -> None:
    """Extend a deadline for the controller, who has told the person why within the first (GDPR 12(3)); once.

    Raises:
        NotFound: No such request, or not one of `owner`'s.
        Conflict: It has ended, was extended before, or its deadline has passed.
    """
    with services.db.transaction() as session:
        request = requests.by_id(session, request_id, lock=True)
        if request is None or owner not in (None, request.api_key_id):
            raise NotFound("There is no such request.")
        if request.status in TERMINAL_REQUESTS or request.extended_at or request.due_at < datetime.now(UTC):
            raise Conflict("Only the deadline of an open request can be extended, before it has passed, and once.")
        request.due_at = extended(request.due_at, request.regulation)
        request.extended_at, request.extension_reason = datetime.now(UTC), reason
        audit.append(session, "request.extended", ref=request.ref, due=request.due_at.date().isoformat(), reason=reason)
