"""Seals a submission: the request to be stored, its sealed records, its log entry and its receipt. Nothing waits."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from uuid import UUID

from service.audit import commitments
from service.audit.canonical import dumps
from service.audit.receipt import RECEIPT_TYPE, receipt_payload
from service.bootstrap import Services
from service.callbacks.dialects import callback_lane
from service.db import log_entries
from service.db.intake import NewRequest
from service.db.tables import DeletionRequest
from service.domain.deadlines import due_at
from service.domain.states import RequestStatus
from service.domain.submission import CallbackTarget, Submission
from service.observability.tracing import traceparent
from service.privacy.envelope import DataKey
from service.privacy.epochs import wrapping_epoch
from service.privacy.randomness import random_uuid
from service.privacy.records import (
    PROBES_ITEM,
    REFERENCE_ITEM,
    SUBJECT_ITEM,
    dump_probes,
    reference_hash,
    seal_records,
    seal_text,
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A stored request, and its commitments with their nonces: of each text, then of the subject's canonical JSON."""

    request: DeletionRequest
    model: str
    nonces: list[bytes]
    commitments: list[bytes]
    receipt: bytes = b""


def new_request(
    services: Services, submission: Submission, api_key_id: UUID, key_hash: bytes | None, now: datetime
) -> tuple[Accepted, NewRequest]:
    """Seal a submission, and sign its receipt before anything is stored."""
    accepted, sealed = _seal(services, submission, now)
    request = accepted.request
    request.api_key_id, request.idempotency_hash = api_key_id, key_hash
    targets = submission.callbacks
    request.callback_lanes = [callback_lane(services.wrapper, api_key_id, target) for target in targets] or None
    if submission.reference is not None:
        request.reference_hash = reference_hash(services.wrapper, api_key_id, submission.reference)
    accepted = replace(accepted, receipt=signed_receipt(services, accepted))
    return accepted, NewRequest(request, submission.model, sealed, _log_entry(request, submission.model))


def signed_receipt(services: Services, accepted: Accepted) -> bytes:
    """The receipt: a DSSE envelope with the openings of the request's commitment. The service does not store it."""
    request = accepted.request
    payload = receipt_payload(
        issuer=services.settings.issuer,
        ref=request.ref,
        model=accepted.model,
        commitment=request.commitment,
        nonces=accepted.nonces,
        commitments=accepted.commitments,
        checkpoint=services.log.known_checkpoint(),
        times={name: getattr(request, name) for name in ("received_at", "accepted_at", "due_at")},
    )
    return services.keyring.sign("receipt", payload, RECEIPT_TYPE)


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


def canonical_body(submission: Submission) -> bytes:
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
            *([{"probes": [asdict(probe) for probe in submission.probes]}] if submission.probes else ()),
        ]
    )


def _seal(services: Services, submission: Submission, now: datetime) -> tuple[Accepted, list[bytes]]:
    """The request to be stored, and its sealed records."""
    request_id, ref = random_uuid(), random_uuid().hex
    data_key, wrapped = DataKey.create(request_id, services.wrapper)
    body_hash = data_key.keyed_hash("body", canonical_body(submission))
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
        probes=_seal_optional(data_key, PROBES_ITEM, dump_probes(submission.probes)),
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
