"""When what waits will have been dealt with."""

from datetime import timedelta

from sqlalchemy import func, update

from service.db.forecast import backlogs
from service.db.tables import DeletionRequest, Job
from service.steps.path.batch import batch_requests
from tests.service.conftest import only_model, submit
from tests.status_door import planting


def test_what_waits_ends_at_the_rate_of_the_last_jobs(api, services, model):
    """One job dealt with two requests in two days. Three wait that are due the day after tomorrow: one is too late."""
    for _ in range(2):
        submit(api)
    batch_requests(services, only_model(services))
    with services.db.reading() as session:
        (before,) = backlogs(session, 10)
        assert (before.requests, before.per_hour, before.ends_at, before.late) == (2, None, None, 0)
    with planting(), services.db.transaction() as session:
        session.execute(update(Job).values(stage="done", started_at=func.now() - timedelta(days=2)))
        session.execute(update(Job).values(finished_at=func.now()))
        session.execute(update(DeletionRequest).values(status="completed", finished_at=func.now()))
    with services.db.reading() as session:
        assert backlogs(session, 10) == []
    for _ in range(3):
        submit(api)
    with services.db.transaction() as session:
        waiting = DeletionRequest.status == "pending"
        last = update(DeletionRequest).where(waiting).values(due_at=func.now() + timedelta(days=2))
        session.execute(last)
    with services.db.reading() as session:
        (backlog,) = backlogs(session, 10)
        now = session.scalar(func.now())
    assert (backlog.model, backlog.requests, backlog.late) == (model, 3, 1)
    assert abs(24 * backlog.per_hour - 1) < 0.05
    assert abs(backlog.ends_at - now - timedelta(days=3)) < timedelta(hours=1)
    (day,) = backlog.days
    assert (day.requests, day.late) == (3, 1)
    shown = api.get(f"/v1/overview/backlogs/{model}").json()
    assert shown["days"] == [{"due_on": day.due_on.isoformat(), "requests": 3, "late": 1}]
    assert (shown["requests"], shown["late"], shown["ends_at"] is None) == (3, 1, False)
    assert api.get("/v1/overview/backlogs/another").status_code == 404
    assert "unlearnd_backlog_late" in api.get("/metrics").text
