"""The sweep wakes lost work and gives up dead work; the collector removes only what nothing needs."""

import os
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, func, select, update

from service.db import job_events, jobs, models
from service.db.tables import DeletionRequest, Job, Outbox, Version
from service.domain.states import COMPUTE_STAGES
from service.lease import Lease
from service.steps.path.publish import publish_version
from service.steps.upkeep import sweep
from service.steps.upkeep.sweep import collect_garbage, wake_lost_work
from tests import status_door
from tests.service.conftest import REQUESTS, submit
from tests.service.jobs import certified, claim, expire
from worker import tasks


def test_a_release_that_was_doomed_and_is_a_version_comes_back(services, job):
    """A collector that was frozen between its two transactions: a version came to name what it had doomed."""
    _, job_id = job
    publish_version(services, job_id, certified(services, job_id))
    with services.db.transaction() as session:
        digest = session.scalar(select(Version.digest).where(Version.number == 1))
    staging = services.settings.storage_dir / "staging"
    services.storage.staging("x")
    for name, folder, named in ((digest, services.storage.release(digest), True), ("staging/x", staging / "x", False)):
        doomed = services.storage.set_aside(name)
        collect_garbage(services)
        assert (staging / doomed).exists()  # somebody may be at it
        assert not folder.exists()
        os.utime(staging / doomed, (0, 0))
        collect_garbage(services)
        assert folder.exists() is named
    assert list(staging.iterdir()) == []


def age_progress(services) -> None:
    """As if the last step of progress were longer ago than is allowed."""
    long_ago = func.now() - timedelta(seconds=services.settings.stall_seconds + 1)
    with services.db.transaction() as session:
        session.execute(update(Job).values(progress_at=long_ago))


def test_a_stuck_job_loses_its_lease(services, job):
    """A heartbeat without a step of progress is not believed for ever."""
    _, job_id = job
    lease = Lease(services, job_id, claim(services, job_id))
    lease.steps = 1
    lease.beat()
    age_progress(services)
    lease.steps = 2
    lease.beat()
    assert not lease.lost.is_set()
    age_progress(services)
    lease.beat()
    assert lease.lost.is_set()
    with services.db.reading() as session:
        row = jobs.by_id(session, job_id)
        assert (row.owner, row.attempts, row.losses) == (None, 1, 0)  # it failed: nothing outside the job ended it
        assert job_events.after(session, job_id, 0)[-1].data["reason"] == "stalled"


def test_the_sweep_wakes_what_was_lost_and_not_again_at_once(services, job):
    """A job whose wake-up was lost is woken, then left alone for a lease's time."""
    _, job_id = job
    with services.db.transaction() as session:
        session.execute(update(Job).values(woken_at=None))
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == [job_id]
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == []
    claim(services, job_id)
    expire(services, job_id)
    with services.db.transaction() as session:
        session.execute(update(Job).values(woken_at=None))
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == [job_id]
    wake_lost_work(services)


def test_the_sweep_gives_up_a_job_that_has_lost_too_many_workers(api, services, job):
    """Each was killed with all that it had: nobody is left to say so but the sweep."""
    request, job_id = job
    for _ in range(services.settings.max_losses):
        wake_lost_work(services)
        assert claim(services, job_id)
        expire(services, job_id)
    wake_lost_work(services)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "workers_lost"


def test_collect_removes_only_what_nothing_needs(services, job):
    """Working folders of ended jobs and old orphan releases go; live ones and versions stay."""
    _, job_id = job
    services.storage.work(job_id, 1)
    services.storage.publish(services.storage.staging("x"), "0" * 64)
    orphan = services.storage.release("0" * 64)
    collect_garbage(services)
    assert services.storage.jobs_present() == [job_id]
    assert orphan.exists()
    os.utime(orphan, (0, 0))
    with status_door.planting(), services.db.transaction() as session:
        session.execute(update(Job).values(stage="done"))
    collect_garbage(services)
    assert not services.storage.jobs_present()
    assert not orphan.exists()
    assert len(services.storage.releases()) == 1


def test_what_is_in_use_takes_no_lock_of_the_collector(services, model, monkeypatch):
    """Reference texts and first versions grow old in use: each collection would hold up whoever publishes."""
    for folder in ("versions", "corpora"):
        for path in (services.settings.storage_dir / folder).iterdir():
            os.utime(path, (0, 0))
    locks = []
    monkeypatch.setattr(models, "lock_collection", locks.append)
    collect_garbage(services)
    assert locks == []
    assert len(services.storage.releases()) == 1


def test_a_foreign_name_in_the_working_folder_stops_no_collection(services, job):
    """A volume of its own has one, and whoever computes can make any."""
    _, job_id = job
    services.storage.work(job_id, 1)
    for folder in ("work", "ledger/purged", "ledger/purged-epochs"):
        (services.settings.storage_dir / folder / "lost+found").mkdir()
    assert services.storage.jobs_present() == [job_id]
    assert services.storage.purged() == services.storage.purged_epochs() == []
    collect_garbage(services)
    with services.db.reading() as session:  # nor does their number: a statement has 65,535 parameters at most
        assert jobs.unfinished(session, [job_id, *(uuid4() for _ in range(70_000))]) == {job_id}


def fails(services) -> None:
    """A part of the upkeep that cannot do its work."""
    raise OSError("planted")


@pytest.mark.parametrize("part", ["_purge", "collect_garbage"])
def test_a_part_of_the_collection_that_fails_keeps_no_other_from_its_work(services, job, monkeypatch, part):
    """The log is signed all the same; the task fails, so that it is seen."""
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    monkeypatch.setattr(tasks, part, fails)
    assert services.log.checkpoint() is None
    with pytest.raises(OSError, match="planted"):
        tasks.collect()
    assert services.log.checkpoint()


def test_a_job_that_cannot_be_given_up_keeps_nothing_from_being_woken(services, job, monkeypatch):
    """The sweep goes on, and fails at its end."""
    _, job_id = job
    with services.db.transaction() as session:
        session.execute(update(Job).values(woken_at=None))
    monkeypatch.setattr(sweep, "_quarantine_one", fails)
    with pytest.raises(OSError, match="planted"):
        wake_lost_work(services)
    with services.db.transaction() as session:
        assert jobs.by_id(session, job_id).woken_at is not None


def test_all_requests_that_are_due_are_alerted_at_once(services, api, model):
    """One alert each, whatever number of sweeps; and one statement, because a sweep must not take long."""
    ids = {submit(api)["id"] for _ in range(5)}
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(due_at=func.now() + timedelta(days=1)))
    inserts = []
    event.listen(
        services.db.engine,
        "before_cursor_execute",
        lambda *execution: inserts.append(execution[2]) if "INSERT INTO outbox" in execution[2] else None,
    )
    wake_lost_work(services)
    wake_lost_work(services)
    with services.db.reading() as session:
        alerts = session.execute(select(Outbox.request_id, Outbox.status, Outbox.target)).all()
    assert sorted(alerts) == sorted((UUID(request_id), "due_soon", -1) for request_id in ids)
    assert len(inserts) == 2 * 2  # in each sweep one for what is due soon, and one for what is overdue
