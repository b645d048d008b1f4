"""Lists of deletion requests: by what people search for, and by what they have to look at first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, LargeBinary, Select, any_, func, literal, select
from sqlalchemy.orm import Session, joinedload

from service.db.due_requests import is_due
from service.db.paging import Page, page
from service.db.tables import DeletionRequest
from service.domain.states import Hold, RequestStatus

HASHES = ARRAY(LargeBinary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a list shows; None: all. `owed`: those that somebody waits for still, failed ones included."""

    status: str | None = None
    model_id: UUID | None = None
    job_id: UUID | None = None
    regulation: str | None = None
    waits_for: str | None = None
    owed: bool | None = None
    due_before: datetime | None = None
    received_from: datetime | None = None
    received_before: datetime | None = None
    api_key_id: UUID | None = None
    reference_hashes: Sequence[bytes] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions of a query."""
        request = DeletionRequest
        given: list[tuple[object, Callable[[Any], ColumnElement[bool]]]] = [
            (self.status, request.status.__eq__),
            (self.model_id, request.model_id.__eq__),
            (self.job_id, request.job_id.__eq__),
            (self.regulation, request.regulation.__eq__),
            (self.waits_for, lambda hold: (request.hold == hold) & (request.status == RequestStatus.PENDING)),
            (self.owed, lambda owed: is_due() if owed else ~is_due()),
            (self.due_before, request.due_at.__lt__),
            (self.received_from, request.received_at.__ge__),
            (self.received_before, request.received_at.__lt__),
            (self.api_key_id, request.api_key_id.__eq__),
            (self.reference_hashes, lambda listed: request.reference_hash == any_(literal(listed, HASHES))),
        ]
        return [compare(value) for value, compare in given if value is not None]


def listing(session: Session, cursor: str | None, limit: int, filters: Filters) -> Page[DeletionRequest]:
    """A page of the requests that pass the filters, newest first."""
    query = _requests().where(*filters.conditions())
    return page(session, query, DeletionRequest.seq, int, cursor, limit, descending=True)


def due_first(session: Session, limit: int) -> list[DeletionRequest]:
    """The requests that somebody waits for, the earliest deadline first."""
    query = _requests().where(is_due()).order_by(DeletionRequest.due_at, DeletionRequest.seq)
    return list(session.scalars(query.limit(limit)))


def awaiting_approval(session: Session, limit: int) -> list[DeletionRequest]:
    """The requests that wait for a decision, the earliest deadline first."""
    waits = (DeletionRequest.hold == Hold.APPROVAL) & (DeletionRequest.status == RequestStatus.PENDING)
    return list(session.scalars(_requests().where(waits).order_by(DeletionRequest.due_at).limit(limit)))


def failed(session: Session, limit: int) -> list[DeletionRequest]:
    """The failed requests that nobody has retried or resolved, the earliest deadline first."""
    is_failed = is_due() & (DeletionRequest.status == RequestStatus.FAILED)
    return list(session.scalars(_requests().where(is_failed).order_by(DeletionRequest.due_at).limit(limit)))


def due_soon_count(session: Session, before: datetime) -> int:
    """How many requests that somebody waits for have a deadline from now until `before`."""
    is_soon = DeletionRequest.due_at.between(func.now(), before)
    return session.scalar(select(func.count()).where(is_due(), is_soon)) or 0


def _requests() -> Select[DeletionRequest]:
    """Requests with their models."""
    return select(DeletionRequest).options(joinedload(DeletionRequest.model))
