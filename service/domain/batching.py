"""When a window of pending requests closes and which of them form the job."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Id = TypeVar("Id")
APPROACHING = timedelta(days=2)  # a request so close to its deadline waits for no window


@dataclass(frozen=True, slots=True)
class Pending(Generic[Id]):
    """A pending request, as far as batching needs to know it."""

    id: Id
    records: int
    accepted_at: datetime
    due_at: datetime


def seal(pending: Sequence[Pending[Id]], *, max_batch_records: int, max_wait_seconds: float, now: datetime) -> list[Id]:
    """The requests that form a job now; none while the window may stay open.

    `pending` comes ordered by deadline. The window closes on size, on the age of its oldest request, or when a
    deadline approaches. A request with more records than a batch holds goes alone.

    Args:
        pending: Requests ordered by `due_at`.
        max_batch_records: Records a job holds at most.
        max_wait_seconds: How long the oldest request may wait.
        now: The current time.

    Returns:
        Ids in deadline order.
    """
    if not pending:
        return []
    full = sum(p.records for p in pending) >= max_batch_records
    aged = now - min(p.accepted_at for p in pending) >= timedelta(seconds=max_wait_seconds)
    urgent = pending[0].due_at - now <= APPROACHING
    if not (full or aged or urgent):
        return []
    picked, room = [pending[0].id], max_batch_records - pending[0].records
    for candidate in pending[1:]:
        if candidate.records <= room:
            picked.append(candidate.id)
            room -= candidate.records
    return picked
