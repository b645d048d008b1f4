"""Queries on requests that somebody still waits for: open ones, and failed ones that nobody has resolved.

A failed request was not dealt with. Its deadline stays, and so do its alarms, until a retry ends well or an operator
resolves it.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest
from service.domain.states import TERMINAL_REQUESTS, RequestStatus

SETTLED = TERMINAL_REQUESTS - {RequestStatus.FAILED}


def is_due() -> ColumnElement[bool]:
    """Whether somebody still waits for a request; the index `ix_deletion_requests_due` has this condition."""
    return DeletionRequest.resolved_at.is_(None) & DeletionRequest.status.not_in(SETTLED)


def next_due(session: Session) -> datetime | None:
    """The earliest deadline of a request that somebody waits for."""
    return session.scalar(select(func.min(DeletionRequest.due_at)).where(is_due()))


def overdue(session: Session) -> tuple[int, datetime | None]:
    """How many requests that somebody waits for are past their deadline, and the oldest of these deadlines."""
    query = select(func.count(), func.min(DeletionRequest.due_at)).where(is_due(), DeletionRequest.due_at < func.now())
    count, oldest = session.execute(query).one()
    return count, oldest


def failed(session: Session) -> int:
    """How many requests have failed and are neither retried nor resolved."""
    is_failed = DeletionRequest.status == RequestStatus.FAILED
    return session.scalar(select(func.count()).where(is_due(), is_failed)) or 0
