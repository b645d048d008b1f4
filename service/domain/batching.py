"""When a window of pending requests closes and which of them form the job."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Id = TypeVar("Id")
APPROACHING = timedelta(days=2)  # a request this close to its deadline closes the window


@dataclass(frozen=True, slots=True)
class Pending(Generic[Id]):
    """What batching needs to know of a pending request."""

    id: Id
    records: int
    accepted_at: datetime
    due_at: datetime


def requests_to_batch(
    pending: Sequence[Pending[Id]], *, max_batch_records: int, max_wait_seconds: float, now: datetime
) -> list[Id]:
    """The requests that form a job now; none while the window may stay open.

    The window closes when it is full, when its oldest request has waited long enough, or when a deadline approaches.
    A request with more records than a batch holds forms a job alone.

    Args:
        pending: Requests ordered by `due_at`.
        max_batch_records: The most records that a job holds.
        max_wait_seconds: The longest time that the oldest request may wait.
        now: The current time.

    Returns:
        Ids in deadline order.
    """
    if not pending:
        return []
    full = sum(request.records for request in pending) >= max_batch_records
    aged = now - min(request.accepted_at for request in pending) >= timedelta(seconds=max_wait_seconds)
    urgent = pending[0].due_at - now <= APPROACHING
    if not (full or aged or urgent):
        return []
    first, *others = pending
    return [first.id, *requests_that_fit(others, max_batch_records - first.records)]


def requests_that_fit(pending: Sequence[Pending[Id]], records: int) -> list[Id]:
    """The requests, in this order, that have so many records at most together."""
    picked = []
    for candidate in pending:
        if candidate.records <= records:
            picked.append(candidate.id)
            records -= candidate.records
    return picked
