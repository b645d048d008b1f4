"""The tallies are what counting would give, whatever happens to requests, and whoever adds them up meanwhile."""

import threading
from collections import Counter

from sqlalchemy import delete, func, select, text, update

from service.db import tallies
from service.db.tables import DeletionRequest
from service.steps.upkeep.sweep import wake_lost_work
from tests.service.conftest import REQUESTS, submit
from tests.service.jobs import publish_what_waits
from tests.status_door import planting

ROWS = text("SELECT count(*) FROM request_tallies")
GROUPS = text("SELECT count(*) FROM (SELECT DISTINCT model_id, status, held, due_on FROM request_tallies) AS t")


def counted(services) -> dict[str, int]:
    """How many requests have each status, by counting."""
    with services.db.reading() as session:
        query = select(DeletionRequest.status, func.count()).group_by(DeletionRequest.status)
        return dict(session.execute(query).all())


def tallied(services) -> dict[str, int]:
    """The same, by the tallies."""
    with services.db.reading() as session:
        return dict(tallies.by_status(session))


def test_they_follow_every_change(api, services, model):
    """Requests that are taken, cancelled, published, reopened in one statement, and removed."""
    for number in range(5):
        submit(api, records=[{"text": f"record {number}"}])
    api.delete(f"{REQUESTS}/{submit(api)['id']}")
    assert tallied(services) == counted(services) == {"pending": 5, "cancelled": 1}
    publish_what_waits(services)
    submit(api)
    assert tallied(services) == counted(services) == {"completed": 5, "cancelled": 1, "pending": 1}
    wake_lost_work(services)
    with services.db.reading() as session:
        ((_, _, waiting),) = tallies.waiting_by_day(session)
        assert (waiting, session.scalar(ROWS)) == (1, session.scalar(GROUPS))
    assert tallied(services) == counted(services)
    with planting(), services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(status="failed"))
        session.execute(delete(DeletionRequest).where(DeletionRequest.records_count == 0))
    assert tallied(services) == counted(services) == {"failed": 7}


def test_nothing_is_added_up_twice(api, services, model):
    """While requests arrive, several processes add them up."""
    threads = [threading.Thread(target=compact_often, args=[services]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        submit(api)
    for thread in threads:
        thread.join()
    compact_often(services)
    assert tallied(services) == {"pending": 30}
    with services.db.reading() as session:
        rows = Counter(session.scalars(text("SELECT requests FROM request_tallies")))
    assert sum(rows.values()) == 1


def compact_often(services) -> None:
    """Add up, again and again."""
    for _ in range(30):
        with services.db.transaction() as session:
            tallies.compact(session)
