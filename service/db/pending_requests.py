"""Queries of batching: pending requests that nothing holds back."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest, Job, Model
from service.domain.batching import Pending
from service.domain.states import TERMINAL_STAGES, RequestStatus

BATCHABLE = (DeletionRequest.status == RequestStatus.PENDING) & DeletionRequest.hold.is_(None)


def idle_models(session: Session) -> list[UUID]:
    """Models with pending requests and no active job."""
    active = select(Job.id).where(Job.model_id == Model.id, Job.stage.not_in(TERMINAL_STAGES)).exists()
    first = select(DeletionRequest.id).where(DeletionRequest.model_id == Model.id, BATCHABLE)
    first = first.order_by(DeletionRequest.due_at).limit(1)
    return list(session.scalars(select(Model.id).where(first.scalar_subquery().is_not(None), ~active)))


def window(session: Session, model_id: UUID, limit: int) -> list[Pending[UUID]]:
    """The first pending requests of a model, by deadline, not locked."""
    request = DeletionRequest
    query = select(request.id, request.records_count, request.accepted_at, request.due_at)
    query = query.where(request.model_id == model_id, request.wrapped_key.is_not(None), BATCHABLE)
    return [Pending(*row) for row in session.execute(query.order_by(request.due_at, request.seq).limit(limit))]


def lock_pending(session: Session, ids: Sequence[UUID]) -> list[DeletionRequest]:
    """The requests among these that are still pending, locked; skips rows that another transaction has locked."""
    query = select(DeletionRequest).where(DeletionRequest.id.in_(ids), BATCHABLE)
    return list(session.scalars(query.order_by(DeletionRequest.due_at).with_for_update(skip_locked=True)))
