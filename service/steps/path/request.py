"""request: accept a deletion request, durably and once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from service.audit import commitments
from service.bootstrap import Services
from service.db import requests
from service.db.group_commit import is_item_error
from service.db.intake import NewRequest, insert_requests
from service.db.tables import DeletionRequest
from service.domain.deadlines import check_received
from service.domain.errors import Conflict, Invalid
from service.domain.records import check_records
from service.domain.states import Hold
from service.domain.submission import Resubmission, Submission
from service.privacy.records import open_records, open_subject, request_data_key
from service.sealing import Accepted, canonical_body, new_request, signed_receipt
from service.subjects.search import check_searchable

# What a coroutine seals: more would keep other requests waiting. It also fits a group of the intake.
MAX_TEXTS_AT_ONCE, MAX_CHARACTERS_AT_ONCE = 16, 16_384


def accept_request(
    services: Services, submission: Submission, api_key_id: UUID, idempotency_key: str | None
) -> Accepted:
    """Store the request, its sealed records and a log entry in one transaction, then wake batching.

    A repeated Idempotency-Key of the same API key returns the request that the first call made.

    Raises:
        Conflict: The Idempotency-Key was used for a request that was purged since.
        Invalid: A field is not valid, or the Idempotency-Key was used with another body.
    """
    now = datetime.now(UTC)
    _check(services, submission, now)
    key_hash = _key_hash(services, idempotency_key)
    if submission.subject is not None:
        existing = _existing_if_unsearchable(services, submission, api_key_id, key_hash)
        if existing is not None:
            return _existing_as_accepted(services, existing, submission)
    if submission.resubmits:
        _check_resubmission(services, submission, submission.resubmits)
    try:
        accepted, new = new_request(services, submission, api_key_id, key_hash, now)
        stored = services.intake(new)
    except psycopg.errors.ForeignKeyViolation:  # the epoch's key was destroyed after the texts were sealed
        services.wrapper.end_present()
        accepted, new = new_request(services, submission, api_key_id, key_hash, now)
        stored = services.intake(new)
    if stored is None:
        existing = _existing_request(services, submission, api_key_id, key_hash)
        return _existing_as_accepted(services, existing, submission)
    return _with_job_to_do(services, accepted, stored)


async def accept_at_once(
    services: Services, submission: Submission, api_key_id: UUID, idempotency_key: str | None
) -> Accepted | None:
    """Do the same in a coroutine, which holds no thread while the database stores the request.

    Returns:
        The accepted request. None, and nothing is stored, if that takes a look-up, a new epoch key, or long: then
        `accept_request` does it.

    Raises:
        Invalid: A field is not valid.
    """
    if not _is_simple(submission) or not services.wrapper.has_room():
        return None
    now = datetime.now(UTC)
    _check(services, submission, now)
    key_hash = _key_hash(services, idempotency_key)
    accepted, new = new_request(services, submission, api_key_id, key_hash, now)
    try:
        stored = await services.intake.add(new)
    except psycopg.errors.ForeignKeyViolation:
        return None
    return _with_job_to_do(services, accepted, stored) if stored is not None else None


def accept_group(
    services: Services, given: Sequence[tuple[Submission, str | None]], api_key_id: UUID
) -> list[Accepted | Exception]:
    """Accept several requests, each with its Idempotency-Key if it has one, in one transaction as far as they allow it.

    Returns:
        For each the accepted request, or what `accept_request` raises for it: one that is wrong stops no other.
    """
    now, results = datetime.now(UTC), dict[int, Accepted | Exception]()
    sealed: dict[int, tuple[Accepted, NewRequest]] = {}
    alone: list[int] = []
    for index, (submission, key) in enumerate(given):
        if not _is_simple(submission):
            alone.append(index)
            continue
        try:
            _check(services, submission, now)
            sealed[index] = new_request(services, submission, api_key_id, _key_hash(services, key), now)
        except Exception as error:  # of this one
            results[index] = error
    try:
        stored = insert_requests(services.db, [new for _, new in sealed.values()]) if sealed else []
        for (index, (accepted, _)), outcome in zip(sealed.items(), stored, strict=True):
            if outcome is None:
                alone.append(index)
            else:
                results[index] = _with_job_to_do(services, accepted, outcome)
    except (psycopg.Error, SQLAlchemyError) as error:
        if not is_item_error(error):  # each alone would wait for the same error
            return [results.get(index, error) for index in range(len(given))]
        alone += sealed
    for index in alone:
        results[index] = _accept_alone(services, *given[index], api_key_id)
    return [results[index] for index in range(len(given))]


def _accept_alone(
    services: Services, submission: Submission, key: str | None, api_key_id: UUID
) -> Accepted | Exception:
    """The accepted request, or what is wrong with it."""
    try:
        return accept_request(services, submission, api_key_id, key)
    except Exception as error:
        return error


def _is_simple(submission: Submission) -> bool:
    """Whether a submission is small and needs no look-up, so that it may be sealed beside others."""
    texts = [*submission.texts, *(text for probe in submission.probes for text in (probe.prompt, probe.secret))]
    is_large = len(texts) > MAX_TEXTS_AT_ONCE or sum(map(len, texts)) > MAX_CHARACTERS_AT_ONCE
    return not (is_large or submission.subject is not None or submission.resubmits)


def _check(services: Services, submission: Submission, now: datetime) -> None:
    """Check what needs no look-up.

    Raises:
        Invalid: A field is not valid.
    """
    settings = services.settings
    if submission.texts or submission.subject is None:
        check_records(submission.texts, max_records=settings.max_records, max_record_bytes=settings.max_record_bytes)
    if submission.received_at:
        check_received(submission.received_at, now)


def _key_hash(services: Services, idempotency_key: str | None) -> bytes | None:
    """The keyed hash of an Idempotency-Key."""
    return services.wrapper.keyed_hash("idempotency", idempotency_key.encode()) if idempotency_key else None


def _with_job_to_do(services: Services, accepted: Accepted, stored: tuple[UUID, str | None]) -> Accepted:
    """Wake the step that a new request waits for."""
    model_id, hold = stored
    accepted.request.hold = hold
    if hold == Hold.RESOLVE:
        services.queue.wake("resolve", accepted.request.id)
    else:
        services.queue.wake("batch", model_id)
    return accepted


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
    return replace(accepted, receipt=signed_receipt(services, accepted))


def _has_same_body(services: Services, request: DeletionRequest, submission: Submission) -> bool:
    """Whether a request was made with this body. Before there were epochs, a key of the service hashed the body."""
    body = canonical_body(submission)
    hashed = request_data_key(services.wrapper, request).keyed_hash("body", body)
    return request.body_hash in (hashed, services.wrapper.keyed_hash("body", body))
