"""Queries on deletion requests."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Uuid, any_, delete, func, literal, select, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload, selectinload, undefer
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.selectable import ForUpdateArg

from service.db import outbox
from service.db.callback_lanes import MAX_AGE
from service.db.history_tables import Approval, Rejection
from service.db.tables import ApiKey, DeletionRequest, Job, KeyEpoch, Outbox, Record, Version
from service.domain.errors import IllegalTransition
from service.domain.notifications import is_notified
from service.domain.states import REQUEST_TRANSITIONS, TERMINAL_REQUESTS, Hold, RequestStatus, check_request


class Decision(NamedTuple):
    """The decision of an API key on a request that waits, or waited, for approval: approved or rejected."""

    decision: str
    api_key_id: UUID
    name: str
    reason: str | None
    at: datetime


DEADLINE_ALERTS = ("due_soon", "overdue")
CONTENT = (selectinload(DeletionRequest.records), undefer(DeletionRequest.probes))  # a list of requests does without
SEALED = dict.fromkeys(("subject_ref", "reference", "callback_url", "subject", "probes"))  # columns that purge empties


def by_id(session: Session, request_id: UUID, *, lock: bool = False) -> DeletionRequest | None:
    """The request with this id and its model; the request is locked if `lock`."""
    options = [joinedload(DeletionRequest.model)]
    locked = ForUpdateArg(of=DeletionRequest) if lock else None
    return session.get(DeletionRequest, request_id, options=options, with_for_update=locked)


def by_ref(session: Session, ref: str) -> DeletionRequest | None:
    """The request with this ref, and its model."""
    query = select(DeletionRequest).options(joinedload(DeletionRequest.model))
    return session.scalar(query.where(DeletionRequest.ref == ref))


def by_subject_request(session: Session, subject_request_id: UUID) -> DeletionRequest | None:
    """The request with this OpenDSR id, its model and its records."""
    query = select(DeletionRequest).options(joinedload(DeletionRequest.model), selectinload(DeletionRequest.records))
    return session.scalar(query.where(DeletionRequest.subject_request_id == subject_request_id))


def by_idempotency(session: Session, api_key_id: UUID, key_hash: bytes) -> DeletionRequest | None:
    """The request that this API key made with this Idempotency-Key, its model and its records."""
    query = select(DeletionRequest).options(joinedload(DeletionRequest.model), selectinload(DeletionRequest.records))
    query = query.where(DeletionRequest.api_key_id == api_key_id, DeletionRequest.idempotency_hash == key_hash)
    return session.scalar(query)


def unresolved(session: Session, limit: int) -> list[UUID]:
    """Pending requests whose records are not resolved yet: those without an error first. API keys take turns.

    A search takes long, so a key with many requests, or with very old ones, must not keep the others waiting.
    """
    request = DeletionRequest
    own = select(request.id, request.due_at, request.seq, request.reason.is_not(None).label("has_error"))
    own = own.where(request.hold == Hold.RESOLVE, request.status == RequestStatus.PENDING)
    own = own.where(request.api_key_id == ApiKey.id).order_by(request.reason.is_not(None), request.due_at, request.seq)
    of_key = own.limit(limit).correlate(ApiKey).lateral()
    order = (of_key.c.has_error, of_key.c.due_at, of_key.c.seq)
    turn = func.row_number().over(partition_by=ApiKey.id, order_by=order)
    query = select(of_key.c.id).select_from(ApiKey).join(of_key, onclause=ApiKey.id.is_not(None))
    return list(session.scalars(query.order_by(of_key.c.has_error, turn, of_key.c.due_at).limit(limit)))


def awaiting_approval_count(session: Session) -> int:
    """How many requests wait for approval."""
    awaiting = (DeletionRequest.hold == Hold.APPROVAL) & (DeletionRequest.status == RequestStatus.PENDING)
    return session.scalar(select(func.count()).where(awaiting)) or 0


def add_records(session: Session, request_id: UUID, first: int, sealed: Sequence[bytes]) -> None:
    """Add sealed records to a request, from position `first` on."""
    session.add_all(
        Record(request_id=request_id, position=position, sealed=content)
        for position, content in enumerate(sealed, start=first)
    )


def add_approval(session: Session, request_id: UUID, api_key_id: UUID, reason: str | None) -> int | None:
    """Add an approval; returns how many the request has now, or None if this API key approved it before."""
    values = {"request_id": request_id, "api_key_id": api_key_id, "reason": reason}
    added = insert(Approval).values(**values).on_conflict_do_nothing().returning(Approval.api_key_id)
    if session.execute(added).first() is None:
        return None
    return session.scalar(select(func.count()).where(Approval.request_id == request_id)) or 0


def add_rejection(session: Session, request_id: UUID, api_key_id: UUID) -> None:
    """Store who rejected a request."""
    session.add(Rejection(request_id=request_id, api_key_id=api_key_id))


def decisions(session: Session, request_id: UUID) -> list[Decision]:
    """The approvals of a request with its present records, and its rejection, oldest first."""
    given = select(DeletionRequest.reason).where(DeletionRequest.id == request_id).scalar_subquery()
    tables = (("approved", Approval, Approval.reason), ("rejected", Rejection, given))
    parts = [
        select(literal(decision), table.api_key_id, ApiKey.name, reason, table.at)
        .join(ApiKey, ApiKey.id == table.api_key_id)
        .where(table.request_id == request_id)
        for decision, table, reason in tables
    ]
    rows = session.execute(union_all(*parts))
    return sorted((Decision(*row) for row in rows), key=lambda decision: decision.at)


def clear_approvals(session: Session, request_id: UUID) -> None:
    """Delete the approvals of a request, because its records have changed."""
    session.execute(delete(Approval).where(Approval.request_id == request_id))


def of_job(session: Session, job_id: UUID, *, with_records: bool = False, lock: bool = False) -> list[DeletionRequest]:
    """The requests of a job, in the order in which they came, locked if `lock`.

    A compute child names them by their place in it. So the order must not change while a job runs, as deadlines do.
    """
    query = select(DeletionRequest).where(DeletionRequest.job_id == job_id)
    if lock:
        query = query.with_for_update()
    if with_records:
        query = query.options(*CONTENT)
    return list(session.scalars(query.order_by(DeletionRequest.seq)))


def custody(model_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """What a request meets that an earlier version of a model unlearned and whose records are still kept.

    One that came back, and that the next job found forgotten, is one of them, too.
    """
    request = DeletionRequest
    completed = (request.status == RequestStatus.COMPLETED) & request.version.is_not(None)
    forgotten = (request.status == RequestStatus.NOT_MEMORISED) & request.came_back_from.is_not(None)
    return request.model_id == model_id, completed | forgotten, request.wrapped_key.is_not(None)


def in_custody(session: Session, model_id: UUID, *also: ColumnElement[bool]) -> list[DeletionRequest]:
    """Requests that earlier versions of a model unlearned and whose records are still kept, oldest first."""
    query = select(DeletionRequest).options(*CONTENT).where(*custody(model_id), *also)
    return list(session.scalars(query.order_by(DeletionRequest.seq)))


def move(
    session: Session,
    requests: Sequence[DeletionRequest],
    target: RequestStatus,
    *,
    table: Mapping[RequestStatus, set[RequestStatus]] = REQUEST_TRANSITIONS,
    notify: bool = True,
    **values: object,
) -> None:
    """Move requests to a status: the only way to write `status`.

    Args:
        session: The transaction.
        requests: Locked or owned. A request that has the status already is skipped.
        target: The new status.
        table: The legal moves.
        notify: Queue callbacks and alerts if the move is news.
        **values: Other columns that change with the status.

    Raises:
        IllegalTransition: The table does not list the move, or the row moved meanwhile.
    """
    finished_at = datetime.now(UTC) if target in TERMINAL_REQUESTS else None
    by_status: dict[str, list[DeletionRequest]] = {}
    for request in requests:
        if request.status != target:
            by_status.setdefault(request.status, []).append(request)
    for before, moved in by_status.items():
        check_request(before, target, table)
        _write_status(session, moved, before, {**values, "status": target, "finished_at": finished_at})
        for request in moved if notify else ():
            if target in (RequestStatus.FAILED, RequestStatus.REJECTED):
                outbox.enqueue_alert(session, request.id, target)
            if is_notified(request.dialect, before, target):
                outbox.enqueue(session, request, target)


def reopen(session: Session, ended: Sequence[DeletionRequest], reason: str | None) -> None:
    """Make requests pending again as if they had never been in a job; their deadlines stay."""
    move(
        session,
        ended,
        RequestStatus.PENDING,
        job_id=None,
        verdict=None,
        version=None,
        reason=reason,
        split_job_id=None,
        split_part=None,
        resolved_at=None,
        resolved_reason=None,
        resolved_by=None,
    )


def reopen_came_back(session: Session, request: DeletionRequest, reason: str, due_at: datetime) -> None:
    """Make a request pending again that a version remembers, with a new deadline; which version fulfilled it stays.

    The alerts of its old deadline go, so that there are some of the new one.
    """
    session.execute(delete(Outbox).where(Outbox.request_id == request.id, Outbox.status.in_(DEADLINE_ALERTS)))
    before = request.version if request.version is not None else request.came_back_from
    reopen(session, [request], reason)
    request.came_back_from, request.due_at = before, due_at


def fulfilled_after(session: Session, model_id: UUID, number: int) -> list[DeletionRequest]:
    """The requests of a model that only versions after `number` fulfil, locked."""
    query = select(DeletionRequest).where(_only_fulfilled_after(model_id, number))
    return list(session.scalars(query.order_by(DeletionRequest.due_at, DeletionRequest.seq).with_for_update()))


def fulfilled_after_counts(session: Session, model_id: UUID, number: int) -> tuple[int, int, int]:
    """How many these are; how many of them are past their deadlines; and of how many the texts were purged."""
    late = func.count().filter(DeletionRequest.due_at < func.now())
    purged = func.count().filter(DeletionRequest.wrapped_key.is_(None))
    query = select(func.count(), late, purged).where(_only_fulfilled_after(model_id, number))
    count, overdue, gone = session.execute(query).one()
    return count, overdue, gone


def _only_fulfilled_after(model_id: UUID, number: int) -> ColumnElement[bool]:
    """They completed in a later version, or a later version was found not to have memorised them."""
    tested_on = select(Version.number).join(Job, Job.parent_version_id == Version.id)
    tested_on = tested_on.where(Job.id == DeletionRequest.job_id).correlate(DeletionRequest)
    completed = (DeletionRequest.status == RequestStatus.COMPLETED) & (DeletionRequest.version > number)
    unseen = (DeletionRequest.status == RequestStatus.NOT_MEMORISED) & (tested_on.scalar_subquery() > number)
    return (DeletionRequest.model_id == model_id) & (completed | unseen)


def _write_status(
    session: Session, moved: Sequence[DeletionRequest], before: str, values: Mapping[str, object]
) -> None:
    """Write a status and other columns of requests, if all rows still have the status that the table was asked for."""
    ids = [request.id for request in moved]
    guarded = update(DeletionRequest).where(DeletionRequest.id.in_(ids), DeletionRequest.status == before)
    guarded = guarded.values(**values).returning(DeletionRequest.id)
    if len(session.execute(guarded, execution_options={"synchronize_session": False}).all()) != len(ids):
        raise IllegalTransition(f"request: no longer {before}")
    for request in moved:
        for name, value in values.items():
            set_committed_value(request, name, value)


def purgeable(session: Session, window: timedelta, failed_window: timedelta, limit: int) -> list[UUID]:
    """Requests to purge: they ended longer ago than their window, and have no callback that may still be delivered."""
    request = DeletionRequest
    undelivered = Outbox.delivered_at.is_(None) & Outbox.next_at.is_not(None)
    callback = select(Outbox.id).where(Outbox.request_id == request.id, undelivered)
    due = (
        select(request.id)
        .where(request.wrapped_key.is_not(None), request.status.in_(TERMINAL_REQUESTS))
        .where(
            (request.finished_at < func.now() - failed_window)
            | (request.finished_at < func.now() - window) & (request.status != RequestStatus.FAILED)
        )
        .where(~callback.exists() | (request.finished_at < func.now() - MAX_AGE))
        .order_by(request.finished_at)
        .limit(limit)
    )
    return list(session.scalars(due))


def unpurged(session: Session, among: list[UUID]) -> list[UUID]:
    """The requests among these whose data key still exists."""
    listed = DeletionRequest.id == any_(literal(among, ARRAY(Uuid)))  # one parameter for any number of ids
    return list(session.scalars(select(DeletionRequest.id).where(listed, DeletionRequest.wrapped_key.is_not(None))))


def purge(session: Session, request_id: UUID) -> str | None:
    """Delete a request's data key and everything sealed with it; returns its ref, or None if it was purged before.

    PostgreSQL keeps deleted bytes for a while. They are unreadable once `steps.upkeep.shred` has destroyed the key of
    the request's epoch, which is marked here.
    """
    session.execute(delete(Record).where(Record.request_id == request_id))
    epoch = select(DeletionRequest.key_epoch).where(DeletionRequest.id == request_id).scalar_subquery()
    session.execute(update(KeyEpoch).where(KeyEpoch.id == epoch).values(has_purged=True))
    return session.scalar(
        update(DeletionRequest)
        .where(DeletionRequest.id == request_id, DeletionRequest.wrapped_key.is_not(None))
        .values(wrapped_key=None, key_epoch=None, **SEALED, resolution=None, body_hash=b"", reference_hash=None)
        .returning(DeletionRequest.ref)
    )
