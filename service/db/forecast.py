"""When the requests that wait will have been dealt with, and how many of them will be late.

Deadlines are days: a request is late once the day of its deadline has passed, UTC.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import tallies

RECENT_JOBS = 20  # of a model: they say its rate
RATES = text("""
SELECT models.id::text, models.name, (
    SELECT sum(requests) / nullif(extract(epoch FROM sum(took)), 0) FROM (
        SELECT finished_at - started_at AS took,
            (SELECT count(*) FROM deletion_requests WHERE job_id = jobs.id) AS requests
        FROM jobs WHERE jobs.model_id = models.id AND stage = 'done' ORDER BY seq DESC LIMIT :recent
    ) AS recent)
FROM models WHERE id::text = ANY (:models)
""")


class DueDay(NamedTuple):
    """The requests that wait and are due on a day, UTC, and how many of them will be late."""

    due_on: date
    requests: int
    late: int


class Backlog(NamedTuple):
    """The requests of a model that wait, and what becomes of them if its jobs go on as its last ones did.

    Requests that wait for a person, and those that have failed, are not among them.

    Attributes:
        model: The name of the model.
        requests: How many wait.
        per_hour: How many its last jobs dealt with in an hour of theirs; None if none has ended.
        ends_at: When the last of those that wait will have been dealt with; None if there is no rate.
        late: How many will be dealt with after the day of their deadline.
        days: The same by the day of the deadline, the earliest first.
    """

    model: str
    requests: int
    per_hour: float | None
    ends_at: datetime | None
    late: int
    days: list[DueDay]


def backlogs(session: Session, most: int, model_id: UUID | None = None) -> list[Backlog]:
    """The models with requests that wait, or one of them, at most so many; those with the most late ones first."""
    waiting = {
        model: [(day, count) for _, day, count in days]
        for model, days in groupby(tallies.waiting_by_day(session, model_id), itemgetter(0))
    }
    rows = session.execute(RATES, {"models": list(waiting), "recent": RECENT_JOBS}).all()
    planned = [_backlog(name, waiting[model], None if rate is None else float(rate)) for model, name, rate in rows]
    return sorted(planned, key=lambda backlog: (-backlog.late, -backlog.requests))[:most]


def _backlog(model: str, days: Sequence[tuple[date, int]], per_second: float | None) -> Backlog:
    """The backlog of a model. Of those that wait, the ones with the earliest deadlines are dealt with first."""
    total = sum(count for _, count in days)
    if not per_second:
        return Backlog(model, total, None, None, 0, [DueDay(day, count, 0) for day, count in days])
    now, before, planned = datetime.now(UTC), 0, []
    for day, count in days:
        left = (datetime.combine(day + timedelta(days=1), time(), UTC) - now).total_seconds()
        in_time = max(0, int(left * per_second) - before)
        planned.append(DueDay(day, count, max(0, count - in_time)))
        before += count
    late = sum(day.late for day in planned)
    return Backlog(model, total, per_second * 3600, now + timedelta(seconds=total / per_second), late, planned)
