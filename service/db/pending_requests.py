"""Queries of batching: pending requests that nothing holds back."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import ApiKey, DeletionRequest, Job, Model
from service.db.waiting_jobs import TAKES_IN
from service.domain.batching import Pending
from service.domain.states import TERMINAL_STAGES, RequestStatus

BATCHABLE = (DeletionRequest.status == RequestStatus.PENDING) & DeletionRequest.hold.is_(None)


def waiting_models(session: Session) -> list[UUID]:
    """Models with pending requests, and with no job or one that can take them in."""
    active = select(Job.id).where(Job.model_id == Model.id, Job.stage.not_in(TERMINAL_STAGES), ~TAKES_IN).exists()
    first = select(DeletionRequest.id).where(DeletionRequest.model_id == Model.id, BATCHABLE)
    first = first.order_by(DeletionRequest.api_key_id, DeletionRequest.due_at).limit(1)
    return list(session.scalars(select(Model.id).where(first.scalar_subquery().is_not(None), ~active)))


def window(session: Session, model_id: UUID, limit: int) -> list[Pending[UUID]]:
    """The first pending requests of a model, not locked: API keys take turns, each with its earliest deadline first.

    So a key with very many requests, or with very old ones, does not keep the others waiting.
    """
    request = DeletionRequest
    own = select(request.id, request.records_count, request.accepted_at, request.due_at, request.seq)
    own = own.where(request.model_id == model_id, request.wrapped_key.is_not(None), BATCHABLE)
    own = own.where(request.split_job_id.is_(None), request.api_key_id == ApiKey.id)
    own = own.order_by(request.due_at, request.seq).limit(limit)
    of_key = own.correlate(ApiKey).lateral()
    turn = func.row_number().over(partition_by=ApiKey.id, order_by=(of_key.c.due_at, of_key.c.seq))
    query = select(of_key.c.id, of_key.c.records_count, of_key.c.accepted_at, of_key.c.due_at)
    query = query.select_from(ApiKey).join(of_key, onclause=ApiKey.id.is_not(None))
    return [Pending(*row) for row in session.execute(query.order_by(turn, of_key.c.due_at, of_key.c.seq).limit(limit))]


def next_part(session: Session, model_id: UUID) -> list[UUID]:
    """The pending requests of one part of a job that was split: of the oldest job the part with the earliest deadline.

    So no part that is split again and again keeps the other parts waiting.
    """
    request = DeletionRequest
    parts = select(request.split_job_id, request.split_part).where(request.model_id == model_id, BATCHABLE)
    parts = parts.where(request.split_job_id.is_not(None), request.wrapped_key.is_not(None))
    parts = parts.join(Job, Job.id == request.split_job_id)
    first = session.execute(parts.order_by(Job.seq, request.due_at, request.seq).limit(1)).first()
    if first is None:
        return []
    same = (request.split_job_id == first.split_job_id) & (request.split_part == first.split_part)
    return list(session.scalars(select(request.id).where(same, BATCHABLE, request.wrapped_key.is_not(None))))


def lock_pending(session: Session, ids: Sequence[UUID]) -> list[DeletionRequest]:
    """The requests among these that are still pending, locked; skips rows that another transaction has locked."""
    query = select(DeletionRequest).where(DeletionRequest.id.in_(ids), BATCHABLE)
    return list(session.scalars(query.order_by(DeletionRequest.due_at).with_for_update(skip_locked=True)))
