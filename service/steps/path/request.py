"""request: accept a deletion request, durably and once."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg

from service.audit import commitments
from service.audit.canonical import dumps
from service.audit.receipt import RECEIPT_TYPE, receipt_payload
from service.bootstrap import Services
from service.callbacks.dialects import callback_lane
from service.db import log_entries, requests
from service.db.intake import NewRequest
from service.db.tables import DeletionRequest
from service.domain.deadlines import check_received, due_at
from service.domain.errors import Conflict, Invalid
from service.domain.records import check_records
from service.domain.states import Hold, RequestStatus
from service.domain.submission import CallbackTarget, Resubmission, Submission
from service.observability.tracing import traceparent
from service.privacy.envelope import DataKey
from service.privacy.epochs import wrapping_epoch
from service.privacy.randomness import random_uuid
from service.privacy.records import (
    REFERENCE_ITEM,
    SUBJECT_ITEM,
    open_records,
    open_subject,
    reference_hash,
    request_data_key,
    seal_records,
    seal_text,
)
from service.subjects.search import check_searchable


@dataclass(frozen=True, slots=True)
class Accepted:
    """A stored request, and its commitments with their nonces: of each text, then of the subject's canonical JSON."""

    request: DeletionRequest
    model: str
    nonces: list[bytes]
    commitments: list[bytes]
    receipt: bytes = b""


def accept_request(
    services: Services, submission: Submission, api_key_id: UUID, idempotency_key: str | None
) -> Accepted:
    """Store the request, its sealed records and a log entry in one transaction, then wake batching.

    A repeated Idempotency-Key of the same API key returns the request that the first call made.

    Raises:
        Conflict: The Idempotency-Key was used for a request that was purged since.
        Invalid: A field is not valid, or the Idempotency-Key was used with another body.
    """
    settings, now = services.settings, datetime.now(UTC)
    if submission.texts or submission.subject is None:
        check_records(submission.texts, max_records=settings.max_records, max_record_bytes=settings.max_record_bytes)
    key_hash = services.wrapper.keyed_hash("idempotency", idempotency_key.encode()) if idempotency_key else None
    if submission.subject is not None:
        existing = _existing_if_unsearchable(services, submission, api_key_id, key_hash)
        if existing is not None:
            return _existing_as_accepted(services, existing, submission)
    if submission.received_at:
        check_received(submission.received_at, now)
    if submission.resubmits:
        _check_resubmission(services, submission, submission.resubmits)
    try:
        accepted, stored = _store(services, submission, api_key_id, key_hash, now)
    except psycopg.errors.ForeignKeyViolation:  # the epoch's key was destroyed after the texts were sealed
        services.wrapper.end_present()
        accepted, stored = _store(services, submission, api_key_id, key_hash, now)
    if stored is None:
        existing = _existing_request(services, submission, api_key_id, key_hash)
        return _existing_as_accepted(services, existing, submission)
    request, (model_id, request.hold) = accepted.request, stored
    if request.hold == Hold.RESOLVE:
        services.queue.wake("resolve", request.id)
    else:
        services.queue.wake("batch", model_id)
    return accepted


def _store(
    services: Services, submission: Submission, api_key_id: UUID, key_hash: bytes | None, now: datetime
) -> tuple[Accepted, tuple[UUID, str | None] | None]:
    """Seal and store a submission; the second value is None if nothing was stored, as in `insert_requests`."""
    accepted, sealed = _seal(services, submission, now)
    request = accepted.request
    request.api_key_id, request.idempotency_hash = api_key_id, key_hash
    targets = submission.callbacks
    request.callback_lanes = [callback_lane(services.wrapper, api_key_id, target) for target in targets] or None
    if submission.reference is not None:
        request.reference_hash = reference_hash(services.wrapper, api_key_id, submission.reference)
    accepted = replace(accepted, receipt=_receipt(services, accepted))  # signed before anything is stored
    new = NewRequest(request, submission.model, sealed, _log_entry(request, submission.model))
    return accepted, services.intake(new)


def _log_entry(request: DeletionRequest, model: str) -> bytes:
    """The log entry of a new request."""
    supplements = {"supplements": request.supplements} if request.supplements else {}
    return log_entries.encode_entry(
        "request.accepted",
        ref=request.ref,
        commitment=request.commitment.hex(),
        model=model,
        due=request.due_at.date().isoformat(),
        **supplements,
    )


def _existing_request(
    services: Services, submission: Submission, api_key_id: UUID, key_hash: bytes | None
) -> DeletionRequest:
    """The request that this API key made before with this Idempotency-Key, so that nothing was stored now.

    Raises:
        Invalid: Nothing was stored for another reason.
    """
    subject_request_id = submission.columns.get("subject_request_id")
    with services.db.reading() as session:
        existing = requests.by_idempotency(session, api_key_id, key_hash) if key_hash else None
        id_in_use = (
            existing is None
            and isinstance(subject_request_id, UUID)
            and requests.by_subject_request(session, subject_request_id) is not None
        )
    if id_in_use:
        raise Invalid("Another controller used this id.", field="subject_request_id", code="id_in_use")
    if existing is None:
        raise Invalid("There is no model of that name.", field="model", code="unknown_model")
    return existing


def _existing_if_unsearchable(
    services: Services, submission: Submission, api_key_id: UUID, key_hash: bytes | None
) -> DeletionRequest | None:
    """The request that this Idempotency-Key made before, if the subject cannot be searched for now; None if it can.

    Raises:
        Invalid: The subject cannot be searched for, and no such request exists.
    """
    assert submission.subject is not None
    try:
        with services.db.reading() as session:
            check_searchable(
                session, services.wrapper, submission.model, submission.subject, has_texts=bool(submission.texts)
            )
    except Invalid:
        with services.db.reading() as session:
            existing = requests.by_idempotency(session, api_key_id, key_hash) if key_hash else None
        if existing is None:
            raise
        return existing
    return None


def _canonical_body(submission: Submission) -> bytes:
    """The canonical bytes of a submission. They show whether a repeated Idempotency-Key has the same body."""
    received = submission.received_at.isoformat() if submission.received_at else None
    return dumps(
        [
            submission.model,
            list(submission.texts),
            submission.subject_ref,
            submission.regulation,
            received,
            _dump_targets(submission.callbacks),
            *([submission.resubmits.ref] if submission.resubmits else ()),
            *([submission.subject] if submission.subject else ()),
            *([{"reference": submission.reference}] if submission.reference is not None else ()),
        ]
    )


def _check_resubmission(services: Services, submission: Submission, earlier: Resubmission) -> None:
    """Check that texts and nonces open the commitment of the earlier request, to the byte.

    Raises:
        Invalid: They do not.
    """
    with services.db.reading() as session:
        request = requests.by_ref(session, earlier.ref)
    texts = [text.encode() for text in submission.texts]
    if request is not None and len(texts) == len(earlier.nonces) and request.model.name == submission.model:
        opened = [commitments.commit(nonce, text) for nonce, text in zip(earlier.nonces, texts, strict=True)]
        if commitments.request_commitment(earlier.ref, opened) == request.commitment:
            return
    raise Invalid("The texts and nonces are not those of that request.", field="resubmits", code="other_texts")


def _seal(services: Services, submission: Submission, now: datetime) -> tuple[Accepted, list[bytes]]:
    """The request to be stored, and its sealed records."""
    request_id, ref = random_uuid(), random_uuid().hex
    data_key, wrapped = DataKey.create(request_id, services.wrapper)
    body_hash = data_key.keyed_hash("body", _canonical_body(submission))
    records = seal_records(data_key, [text.encode() for text in submission.texts])
    subject = [seal_text(data_key, SUBJECT_ITEM, dumps(submission.subject))] if submission.subject is not None else []
    nonces = [text.nonce for text in (*records, *subject)]
    committed = [text.commitment for text in (*records, *subject)]
    received = submission.received_at or now
    request = DeletionRequest(
        id=request_id,
        status=RequestStatus.PENDING,
        regulation=submission.regulation,
        received_at=received,
        due_at=due_at(received, submission.regulation),
        accepted_at=now,
        records_count=len(records),
        ref=ref,
        commitment=commitments.request_commitment(ref, committed),
        body_hash=body_hash,
        wrapped_key=wrapped,
        key_epoch=wrapping_epoch(wrapped),
        supplements=submission.resubmits.ref if submission.resubmits else None,
        subject_ref=_seal_optional(data_key, "subject_ref", submission.subject_ref),
        reference=_seal_optional(data_key, REFERENCE_ITEM, submission.reference),
        callback_url=_seal_optional(data_key, "callback_url", _dump_targets(submission.callbacks)),
        callbacks=len(submission.callbacks),
        traceparent=traceparent(),
        subject=subject[0].sealed if subject else None,
        **submission.columns,
    )
    return Accepted(request, submission.model, nonces, committed), [record.sealed for record in records]


def _dump_targets(callbacks: Sequence[CallbackTarget]) -> str | None:
    """Callback targets as JSON; None if there are none."""
    return json.dumps([asdict(target) for target in callbacks]) if callbacks else None


def _seal_optional(data_key: DataKey, item: str, value: str | None) -> bytes | None:
    return data_key.seal(item, value.encode()) if value is not None else None


def _existing_as_accepted(services: Services, request: DeletionRequest, submission: Submission) -> Accepted:
    """The request that this Idempotency-Key made before, with its receipt.

    Raises:
        Conflict: The request's texts were purged, so the bodies cannot be compared.
        Invalid: The request was made with another body.
    """
    if request.wrapped_key is None:
        raise Conflict("This Idempotency-Key was used for a request whose texts were purged since.")
    if not _has_same_body(services, request, submission):
        raise Invalid(
            "This Idempotency-Key was used with another body.", field="Idempotency-Key", code="idempotency_key_reused"
        )
    opened = open_records(services.wrapper, request)[: request.records_count - (request.results_count or 0)]
    subject = open_subject(services.wrapper, request)
    opened += [subject] if subject else []
    committed = [commitments.commit(nonce, text) for nonce, text in opened]
    accepted = Accepted(request, request.model.name, [nonce for nonce, _ in opened], committed)
    return replace(accepted, receipt=_receipt(services, accepted))


def _has_same_body(services: Services, request: DeletionRequest, submission: Submission) -> bool:
    """Whether a request was made with this body. Before there were epochs, a key of the service hashed the body."""
    body = _canonical_body(submission)
    hashed = request_data_key(services.wrapper, request).keyed_hash("body", body)
    return request.body_hash in (hashed, services.wrapper.keyed_hash("body", body))


def _receipt(services: Services, accepted: Accepted) -> bytes:
    """The receipt: a DSSE envelope with the openings of the request's commitment. The service does not store it."""
    request = accepted.request
    payload = receipt_payload(
        issuer=services.settings.issuer,
        ref=request.ref,
        model=accepted.model,
        commitment=request.commitment,
        nonces=accepted.nonces,
        commitments=accepted.commitments,
        checkpoint=services.log.checkpoint(),
        times={name: getattr(request, name) for name in ("received_at", "accepted_at", "due_at")},
    )
    return services.keyring.sign("receipt", payload, RECEIPT_TYPE)
