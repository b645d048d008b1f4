"""When the requests that wait will have been dealt with, and how many of them will be late."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db.tables import DUE_REQUEST

RECENT_JOBS = 20  # of a model: they say its rate
FORECAST = """
WITH waiting AS (
    SELECT model_id, due_at, row_number() OVER (PARTITION BY model_id ORDER BY due_at, seq) AS place
    FROM deletion_requests WHERE {due} AND status <> 'failed' AND hold IS NULL
),
rate AS (
    SELECT model_id, sum(requests) / nullif(extract(epoch FROM sum(took)), 0) AS per_second
    FROM (SELECT DISTINCT model_id FROM waiting) AS models CROSS JOIN LATERAL (
        SELECT finished_at - started_at AS took,
            (SELECT count(*) FROM deletion_requests WHERE job_id = jobs.id) AS requests
        FROM jobs WHERE jobs.model_id = models.model_id AND stage = 'done' ORDER BY seq DESC LIMIT :recent
    ) AS recent
    GROUP BY model_id
),
planned AS (SELECT *, now() + place / nullif(per_second, 0) * interval '1 second' AS ends_at
    FROM waiting LEFT JOIN rate USING (model_id))
SELECT name, count(*), max(per_second) * 3600, max(ends_at), count(*) FILTER (WHERE ends_at > due_at)
FROM planned JOIN models ON models.id = planned.model_id GROUP BY name ORDER BY 5 DESC, 2 DESC LIMIT :most
"""


class Backlog(NamedTuple):
    """The requests of a model that wait, and what becomes of them if its jobs go on as its last ones did.

    Requests that wait for a person, and those that have failed, are not among them.

    Attributes:
        model: The name of the model.
        requests: How many wait.
        per_hour: How many its last jobs dealt with in an hour of theirs; None if none has ended.
        ends_at: When the last of those that wait will have been dealt with; None if there is no rate.
        late: How many will be past their deadline by then.
    """

    model: str
    requests: int
    per_hour: float | None
    ends_at: datetime | None
    late: int


def backlogs(session: Session, most: int) -> list[Backlog]:
    """The models with requests that wait, at most so many; those with the most late ones first."""
    rows = session.execute(text(FORECAST.format(due=DUE_REQUEST)), {"most": most, "recent": RECENT_JOBS})
    return [
        Backlog(model, requests, None if rate is None else float(rate), ends_at, late)
        for model, requests, rate, ends_at, late in rows
    ]
