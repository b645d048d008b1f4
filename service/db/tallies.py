"""How many requests there are of each kind, without counting them: triggers add a row for each change of many.

The sum over a group is exact at every moment. `compact` keeps the rows few.
"""

from datetime import date
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Column, Date, Table, Text, Uuid, func, select, text
from sqlalchemy.orm import Session

from service.db.base import Base

tallies = Table(
    "request_tallies",
    Base.metadata,
    Column("model_id", Uuid, nullable=False),
    Column("status", Text, nullable=False),
    Column("held", Boolean, nullable=False, comment="waits for a search or a person"),
    Column("due_on", Date, comment="the day of the deadline, UTC; null once it has ended"),
    Column("requests", BigInteger, nullable=False, comment="below 0: so many left this group"),
)
COUNT = func.sum(tallies.c.requests)
# Two processes that compact at the same time: each row is taken by one of them, and added up once.
COMPACT = text("""
WITH taken AS (
    DELETE FROM request_tallies WHERE (model_id, status, held, coalesce(due_on, 'epoch')) IN (
        SELECT model_id, status, held, coalesce(due_on, 'epoch') FROM request_tallies
        GROUP BY 1, 2, 3, 4 HAVING count(*) > 1 OR sum(requests) = 0)
    RETURNING *)
INSERT INTO request_tallies SELECT model_id, status, held, due_on, sum(requests) FROM taken
GROUP BY 1, 2, 3, 4 HAVING sum(requests) <> 0
""")


def by_status(session: Session) -> list[tuple[str, int]]:
    """How many requests have each status."""
    query = select(tallies.c.status, COUNT).group_by(tallies.c.status).having(COUNT > 0)
    return [(status, int(count)) for status, count in session.execute(query)]


def waiting_by_day(session: Session, model_id: UUID | None = None) -> list[tuple[str, date, int]]:
    """(model's id, day of the deadline, how many) of the requests that wait for jobs or are in one, in this order."""
    keys = (tallies.c.model_id, tallies.c.due_on)
    query = select(*keys, COUNT).where(tallies.c.due_on.is_not(None), ~tallies.c.held).group_by(*keys)
    query = query if model_id is None else query.where(tallies.c.model_id == model_id)
    return [
        (str(model), day, int(count)) for model, day, count in session.execute(query.having(COUNT > 0).order_by(*keys))
    ]


def compact(session: Session) -> None:
    """Add up the rows of each group."""
    session.execute(COMPACT)
