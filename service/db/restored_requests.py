"""Requests of a database that was restored from an older backup. Their moves have a table of their own."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audit.lost_entries import CameBack
from service.audit.predicate import CertifiedRequest
from service.db import requests
from service.db.tables import DeletionRequest
from service.domain.states import RESTORE_TRANSITIONS, TERMINAL_REQUESTS, RequestStatus


def end_as_failed(session: Session, request: DeletionRequest) -> None:
    """End a purged request as failed if the restored database does not know how it ended."""
    if request.status not in TERMINAL_REQUESTS:
        requests.move(
            session,
            [request],
            RequestStatus.FAILED,
            table=RESTORE_TRANSITIONS,
            notify=False,
            reason="restored",
        )


def release_from_job(session: Session, job_id: UUID) -> None:
    """Make the open requests of a stopped job pending again: the stop was not their fault."""
    of_job = requests.of_job(session, job_id, lock=True)
    requests.move(
        session,
        [request for request in of_job if request.status not in TERMINAL_REQUESTS],
        RequestStatus.PENDING,
        table=RESTORE_TRANSITIONS,
        notify=False,
        job_id=None,
        verdict=None,
        reason=None,
    )


def reopen_came_back(session: Session, findings: Sequence[CameBack]) -> None:
    """Open requests again that a recheck has opened, by log entries that the database had lost.

    Those that a newer version than the rechecked one has fulfilled stay as they are.
    """
    request = DeletionRequest
    for finding in findings:
        completed = (request.status == RequestStatus.COMPLETED) & (request.version <= finding.number)
        unseen = (request.status == RequestStatus.NOT_MEMORISED) & (request.came_back_from <= finding.number)
        query = select(request).where(request.ref.in_(finding.refs), request.wrapped_key.is_not(None))
        query = query.where(completed | unseen)
        for one in session.scalars(query.order_by(request.id).with_for_update()):
            requests.reopen_came_back(session, one, "came_back", finding.due)


def end_as_certified(
    session: Session, model_id: UUID, job_id: UUID, version: int, lines: Sequence[CertifiedRequest]
) -> int:
    """End the requests that a certificate lists as the certificate says; the backup's statuses are older.

    Returns:
        How many distinct submitters the trained requests came from, as far as the backup has these requests.
    """
    submitters = set()
    for line in lines:
        trained = line["reason"] != "not_memorised"
        query = select(DeletionRequest).where(DeletionRequest.model_id == model_id, DeletionRequest.ref == line["ref"])
        request = session.scalar(query.with_for_update())
        if request is None:
            continue
        if trained:
            submitters.add(request.api_key_id)
        if request.status == RequestStatus.COMPLETED and trained and (request.version or version) < version:
            request.version, request.job_id = version, job_id  # a recheck had opened it meanwhile
        if request.status in TERMINAL_REQUESTS - {RequestStatus.FAILED}:
            continue
        requests.move(
            session,
            [request],
            RequestStatus.COMPLETED if trained else RequestStatus.NOT_MEMORISED,
            table=RESTORE_TRANSITIONS,
            job_id=job_id,
            verdict=line["verdict"],
            version=version if trained else None,
            reason=None if trained else "already_passes",
        )
    return len(submitters)
