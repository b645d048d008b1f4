"""Which job is next: by deadline, over all models, and no worker waits for another."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from service.db import claims, jobs
from service.db.tables import DeletionRequest, Job
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import fail_attempt
from service.local.process import wait_until
from service.steps.path.batch import batch_requests
from service.steps.path.unlearn import store_stage
from tests.service.conftest import registration, submit
from worker import drain, tasks


@pytest.fixture
def waiting(api, services, base) -> list:
    """Jobs of three models; the second is due first, then the third, then the first."""
    made = []
    for number, days in enumerate((9, 1, 5)):
        name = f"model-{number}"
        assert api.post("/v1/models", json=registration(base, name=name)).status_code == 201
        request = submit(api, model=name)
        with services.db.transaction() as session:
            due = func.now() + timedelta(days=days)
            session.execute(update(DeletionRequest).where(DeletionRequest.id == request["id"]).values(due_at=due))
            model_id = session.get(DeletionRequest, request["id"]).model_id
        made.append(batch_requests(services, model_id))
    return made


def test_the_earliest_deadline_is_next(services, waiting):
    """Whatever the model, and in which order the jobs were made."""
    first, second, third = waiting
    taken = []

    def work(_, lease) -> None:
        taken.append(lease.job_id)
        fail_attempt(services, lease, "criterion_missed", permanent=True)

    while tasks.work_under_lease(services, None, COMPUTE_STAGES, work):
        pass
    assert taken == [second, third, first]


def test_a_job_is_as_urgent_as_what_waits_behind_it(api, services, waiting):
    """Nothing else keeps its model's next request from a worker. What is held, or of another model, does not count."""
    first, second, third = waiting
    behind = {name: submit(api, model=name) for name in ("model-0", "model-2")}

    def change(name: str, **values: object) -> None:
        with services.db.transaction() as session:
            query = update(DeletionRequest).where(DeletionRequest.id == behind[name]["id"])
            session.execute(query.values(**values))

    def next_job() -> object:
        with services.db.transaction() as session:
            return claims.most_urgent(session, COMPUTE_STAGES)

    assert next_job() == second
    for name, job_id in (("model-0", first), ("model-2", third)):
        change(name, due_at=func.now() + timedelta(hours=1))
        assert next_job() == job_id
        change(name, hold="approval")
        assert next_job() == second


def test_nobody_waits_for_who_is_about_to_claim(services, waiting):
    """A row that another transaction has locked is passed over; jobs of other stages and claimed ones are, too."""
    with services.db.transaction() as one:
        assert claims.most_urgent(one, COMPUTE_STAGES) == waiting[1]
        with services.db.transaction() as other:
            assert claims.most_urgent(other, COMPUTE_STAGES) == waiting[2]
            assert claims.most_urgent(other, CONTROL_STAGES) is None
            assert jobs.claim(other, waiting[2], "me", COMPUTE_STAGES, lease_seconds=60)
    with services.db.transaction() as session:
        session.execute(update(Job).where(Job.id == waiting[1]).values(not_before=func.now() + timedelta(hours=1)))
    with services.db.transaction() as session:
        assert claims.most_urgent(session, COMPUTE_STAGES) == waiting[0]


def test_a_worker_goes_on_until_nothing_is_left(services, waiting, monkeypatch):
    """One message is enough, and one that comes while every slot is taken does nothing."""
    ran = []

    def run(_, lease) -> None:
        tasks.compute(services)  # what a further message does meanwhile
        ran.append(lease.job_id)
        store_stage(services, lease.job_id, lease.fence, Stage.UNLEARN)
        fail_attempt(services, lease, "criterion_missed", permanent=True)

    monkeypatch.setattr(tasks, "run_job", run)
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    tasks.unlearn()
    assert sorted(ran) == sorted(waiting)


def test_a_worker_that_stops_takes_nothing_more(services, waiting, monkeypatch):
    """It ends after the job that it hands back."""
    ran = []

    def run(_, lease) -> None:
        ran.append(lease.job_id)
        tasks.stopping.set()

    monkeypatch.setattr(tasks, "run_job", run)
    try:
        tasks.compute(services)
    finally:
        tasks.stopping.clear()
    assert ran == [waiting[1]]


def test_a_worker_that_drains_waits_for_a_job_that_somebody_has_locked(services, waiting, monkeypatch):
    """A claim passes over it, and the worker would end though there is work: its scheduler had started it for that."""
    ran, looked = [], []

    def run(_, lease) -> None:
        ran.append(lease.job_id)
        fail_attempt(services, lease, "criterion_missed", permanent=True)

    def look(services) -> None:
        looked.append(None)
        tasks.compute(services)

    monkeypatch.setattr(tasks, "run_job", run)
    monkeypatch.setattr(drain, "compute", look)
    monkeypatch.setattr(drain, "LOOK_AGAIN_SECONDS", 0.01)
    with services.db.transaction() as session:
        session.execute(select(Job.id).with_for_update())
        thread = threading.Thread(target=drain.drain, args=[services])
        thread.start()
        assert wait_until(lambda: len(looked) > 2, 60)
        assert not ran
    thread.join(20)
    assert sorted(ran) == sorted(waiting)
