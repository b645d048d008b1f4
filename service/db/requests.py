"""Deletion requests."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload, selectinload
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.selectable import ForUpdateArg

from service.db import outbox
from service.db.paging import Page, page
from service.db.tables import Approval, DeletionRequest, Job, Model, Outbox, Record
from service.domain.batching import Pending
from service.domain.errors import IllegalTransition
from service.domain.json_types import JsonObject
from service.domain.notifications import is_notified
from service.domain.states import (
    REQUEST_TRANSITIONS,
    RESTORE_TRANSITIONS,
    TERMINAL_REQUESTS,
    TERMINAL_STAGES,
    Hold,
    RequestStatus,
    check_request,
)


def by_id(session: Session, request_id: UUID, *, lock: bool = False) -> DeletionRequest | None:
    """One request with its model, locked if asked for."""
    options = [joinedload(DeletionRequest.model)]
    locked = ForUpdateArg(of=DeletionRequest) if lock else None
    return session.get(DeletionRequest, request_id, options=options, with_for_update=locked)


def by_ref(session: Session, ref: str) -> DeletionRequest | None:
    """The request of that ref, with its model."""
    return session.scalar(
        select(DeletionRequest).options(joinedload(DeletionRequest.model)).where(DeletionRequest.ref == ref)
    )


def by_subject_request(session: Session, subject_request_id: UUID) -> DeletionRequest | None:
    """The request that OpenDSR knows by that id, with its model."""
    query = select(DeletionRequest).options(joinedload(DeletionRequest.model), selectinload(DeletionRequest.records))
    return session.scalar(query.where(DeletionRequest.subject_request_id == subject_request_id))


def by_idempotency(session: Session, api_key_id: UUID, key_hash: bytes) -> DeletionRequest | None:
    """The request that this key made under this Idempotency-Key."""
    return session.scalar(
        select(DeletionRequest)
        .options(joinedload(DeletionRequest.model), selectinload(DeletionRequest.records))
        .where(DeletionRequest.api_key_id == api_key_id, DeletionRequest.idempotency_hash == key_hash)
    )


def listing(
    session: Session,
    cursor: str | None,
    limit: int,
    *,
    status: str | None = None,
    model: str | None = None,
    due_before: datetime | None = None,
    api_key_id: UUID | None = None,
) -> Page[DeletionRequest]:
    """Requests, newest first, filtered."""
    query = select(DeletionRequest).options(joinedload(DeletionRequest.model))
    if status:
        query = query.where(DeletionRequest.status == status)
    if model:
        query = query.join(Model, Model.id == DeletionRequest.model_id).where(Model.name == model)
    if api_key_id:
        query = query.where(DeletionRequest.api_key_id == api_key_id)
    if due_before:
        query = query.where(DeletionRequest.due_at < due_before)
    return page(session, query, DeletionRequest.seq, int, cursor, limit, descending=True)


def pending_models(session: Session) -> list[UUID]:
    """Models with pending requests and no job under way."""
    busy = select(Job.id).where(Job.model_id == Model.id, Job.stage.not_in(TERMINAL_STAGES)).exists()
    r = DeletionRequest
    first = select(r.id).where(r.model_id == Model.id, r.status == RequestStatus.PENDING, r.hold.is_(None))
    first = first.order_by(r.due_at).limit(1)
    return list(session.scalars(select(Model.id).where(first.scalar_subquery().is_not(None), ~busy)))


def pending(session: Session, model_id: UUID, limit: int) -> list[Pending[UUID]]:
    """The first pending requests of a model by deadline, not locked."""
    r = DeletionRequest
    query = select(r.id, r.records_count, r.accepted_at, r.due_at).where(r.model_id == model_id)
    query = query.where(r.wrapped_key.is_not(None))
    query = query.where(r.status == RequestStatus.PENDING, r.hold.is_(None)).order_by(r.due_at, r.seq).limit(limit)
    return [Pending(*row) for row in session.execute(query)]


def lock_pending(session: Session, ids: Sequence[UUID]) -> list[DeletionRequest]:
    """Those of these requests that are pending still, locked; those another transaction holds are left out."""
    r = DeletionRequest
    query = select(r).where(r.id.in_(ids), r.status == RequestStatus.PENDING, r.hold.is_(None))
    return list(session.scalars(query.order_by(r.due_at).with_for_update(skip_locked=True)))


def unresolved(session: Session, limit: int) -> list[UUID]:
    """Pending requests whose records are still to be found, by their deadlines."""
    r = DeletionRequest
    query = select(r.id).where(r.hold == Hold.RESOLVE, r.status == RequestStatus.PENDING)
    return list(session.scalars(query.order_by(r.reason.is_not(None), r.due_at).limit(limit)))


def awaiting_approval_count(session: Session) -> int:
    """Requests that wait for somebody's approval."""
    r = DeletionRequest
    query = select(func.count()).where(r.hold == Hold.APPROVAL, r.status == RequestStatus.PENDING)
    return session.scalar(query) or 0


def add_records(session: Session, request_id: UUID, first: int, sealed: Sequence[bytes]) -> None:
    """Sealed records of a request, from position `first` on."""
    session.add_all(Record(request_id=request_id, position=first + i, sealed=s) for i, s in enumerate(sealed))


def add_approval(session: Session, request_id: UUID, api_key_id: UUID) -> int | None:
    """Enter an approval; how many there are now, or None if this key gave its own before."""
    values = {"request_id": request_id, "api_key_id": api_key_id}
    added = insert(Approval).values(**values).on_conflict_do_nothing().returning(Approval.api_key_id)
    if session.execute(added).first() is None:
        return None
    return session.scalar(select(func.count()).where(Approval.request_id == request_id)) or 0


def clear_approvals(session: Session, request_id: UUID) -> None:
    """Whoever approved a request before has approved something else."""
    session.execute(delete(Approval).where(Approval.request_id == request_id))


def of_job(session: Session, job_id: UUID, *, with_records: bool = False, lock: bool = False) -> list[DeletionRequest]:
    """The requests of a job, in the order of their deadlines, locked if asked for."""
    query = select(DeletionRequest).where(DeletionRequest.job_id == job_id)
    if lock:
        query = query.with_for_update()
    if with_records:
        query = query.options(selectinload(DeletionRequest.records))
    return list(session.scalars(query.order_by(DeletionRequest.due_at, DeletionRequest.seq)))


def in_custody(session: Session, model_id: UUID) -> list[DeletionRequest]:
    """Requests of a model that earlier versions were published for and whose records are still kept, oldest first."""
    return list(
        session.scalars(
            select(DeletionRequest)
            .options(selectinload(DeletionRequest.records))
            .where(DeletionRequest.model_id == model_id, DeletionRequest.status == RequestStatus.COMPLETED)
            .where(DeletionRequest.wrapped_key.is_not(None), DeletionRequest.version.is_not(None))
            .order_by(DeletionRequest.seq)
        )
    )


def move(
    session: Session,
    requests: Sequence[DeletionRequest],
    target: RequestStatus,
    *,
    table: Mapping[RequestStatus, set[RequestStatus]] = REQUEST_TRANSITIONS,
    notify: bool = True,
    **values: object,
) -> None:
    """Move requests to a state: the only door to `status`.

    Args:
        session: The transaction.
        requests: Locked or owned; those that stand there already are left alone.
        target: The new state.
        table: Which moves are legal.
        notify: Queue callbacks and alerts where the move is news.
        **values: Other columns that change with it.

    Raises:
        IllegalTransition: The table does not list the move, or the row has moved meanwhile.
    """
    finished_at = datetime.now(UTC) if target in TERMINAL_REQUESTS else None
    for request in requests:
        before = request.status
        if before == target:
            continue
        check_request(before, target, table)
        _write_status(session, request, {**values, "status": target, "finished_at": finished_at})
        if notify and target in (RequestStatus.FAILED, RequestStatus.REJECTED):
            outbox.enqueue_alert(session, request.id, target)
        if notify and is_notified(request.dialect, before, target):
            outbox.enqueue(session, request.id, request.callbacks, target)


def _write_status(session: Session, request: DeletionRequest, values: Mapping[str, object]) -> None:
    """Write a status, and what changes with it, where the row still has the status that the table was asked about."""
    r = DeletionRequest
    guarded = update(r).where(r.id == request.id, r.status == request.status).values(**values).returning(r.id)
    if session.execute(guarded, execution_options={"synchronize_session": False}).first() is None:
        raise IllegalTransition(f"request: no longer {request.status}")
    for name, value in values.items():
        set_committed_value(request, name, value)


def purgeable(session: Session, window: timedelta, limit: int) -> list[UUID]:
    """Requests that ended well longer ago than `window`, their texts still kept and no callback waiting."""
    r = DeletionRequest
    waiting = select(Outbox.id).where(
        Outbox.request_id == r.id, Outbox.delivered_at.is_(None), Outbox.next_at.is_not(None)
    )
    due = (
        select(r.id)
        .where(r.wrapped_key.is_not(None), r.status.in_(TERMINAL_REQUESTS - {RequestStatus.FAILED}))
        .where(r.finished_at < func.now() - window)
        .where(~waiting.exists())
        .order_by(r.finished_at)
        .limit(limit)
    )
    return list(session.scalars(due))


def unpurged(session: Session, among: list[UUID]) -> list[UUID]:
    """Those of these requests whose data key is still there."""
    r = DeletionRequest
    listed = r.id == any_(literal(among, ARRAY(Uuid)))  # one parameter, however many they are
    return list(session.scalars(select(r.id).where(listed, r.wrapped_key.is_not(None))))


def purge(session: Session, request_id: UUID) -> str | None:
    """Destroy a request's data key and all that was sealed with it; its ref, or None if that was done before."""
    r = DeletionRequest
    session.execute(delete(Record).where(Record.request_id == request_id))
    return session.scalar(
        update(r)
        .where(r.id == request_id, r.wrapped_key.is_not(None))
        .values(wrapped_key=None, subject_ref=None, callback_url=None, subject=None, resolution=None, body_hash=b"")
        .returning(r.ref)
    )


def fail_restored(session: Session, request: DeletionRequest) -> None:
    """A request that was purged had ended; a restored database that does not know how lets it end as failed."""
    if request.status not in TERMINAL_REQUESTS:
        move(session, [request], RequestStatus.FAILED, table=RESTORE_TRANSITIONS, notify=False, reason="restored")


def release_from_job(session: Session, job_id: UUID) -> None:
    """Requests of a job that was stopped for no fault of theirs are pending again."""
    members = [request for request in of_job(session, job_id, lock=True) if request.status not in TERMINAL_REQUESTS]
    move(
        session,
        members,
        RequestStatus.PENDING,
        table=RESTORE_TRANSITIONS,
        notify=False,
        job_id=None,
        verdict=None,
        reason=None,
    )


def adopt(session: Session, model_id: UUID, job_id: UUID, version: int, lines: Sequence[JsonObject]) -> int:
    """End the requests that a certificate lists as it says; the backup's own states are older.

    Returns:
        How many distinct submitters the requests that were trained on came from, as far as the backup has them.
    """
    r = DeletionRequest
    submitters = set()
    for line in lines:
        trained = line["reason"] != "not_memorised"
        request = session.scalar(select(r).where(r.model_id == model_id, r.ref == line["ref"]).with_for_update())
        if request is None:
            continue
        if trained:
            submitters.add(request.api_key_id)
        if request.status in TERMINAL_REQUESTS - {RequestStatus.FAILED}:
            continue
        target = RequestStatus.COMPLETED if trained else RequestStatus.NOT_MEMORISED
        ending = {"version": version, "reason": None} if trained else {"version": None, "reason": "already_passes"}
        move(session, [request], target, table=RESTORE_TRANSITIONS, job_id=job_id, verdict=line["verdict"], **ending)
    return len(submitters)


def counts(session: Session) -> list[tuple[str, int]]:
    """How many requests stand in each state."""
    found = session.execute(select(DeletionRequest.status, func.count()).group_by(DeletionRequest.status))
    return [(status, count) for status, count in found]


def next_due(session: Session) -> datetime | None:
    """The earliest deadline of a request that has not ended."""
    r = DeletionRequest
    return session.scalar(select(func.min(r.due_at)).where(r.status.not_in(TERMINAL_REQUESTS)))


def overdue(session: Session) -> int:
    """Requests past their deadline that are not ended."""
    r = DeletionRequest
    query = select(func.count()).where(r.due_at < func.now(), r.status.not_in(TERMINAL_REQUESTS))
    return session.scalar(query) or 0
