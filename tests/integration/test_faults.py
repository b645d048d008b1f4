"""Races and faults at single places of the path, each made to happen; `tests/chaos` has those of whole processes."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import func, select, update

from service.db import requests
from service.db.tables import DeletionRequest, Job, Outbox, Version
from service.doctor import examine
from service.domain.errors import LostLease
from service.domain.states import CONTROL_STAGES, RequestStatus, Stage
from service.evidence import log_keeper
from service.local.supervisor import wait_until
from service.steps.path import publish
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.upkeep.deliver import deliver_callbacks
from service.steps.upkeep.sweep import collect_garbage
from tests.integration.conftest import REQUESTS, only_model, submit
from tests.integration.test_queue import claim, expire, to_certify
from worker import tasks


def certified(services, job_id) -> int:
    """Take a job to where it waits to be published; the fence under which it is held."""
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)
    return fence


def test_a_zombie_that_has_renamed_its_release_makes_no_version(services, job, monkeypatch):
    """The lease is lost after every earlier check: the fence inside publish's own transaction refuses it.

    (How one knows: without the `jobs.owned` of that transaction this test ends in a version.)
    """
    _, job_id = job
    old, held = certified(services, job_id), []

    def frozen_here(point: str) -> None:
        if point == "publish.renamed" and not held:
            expire(services, job_id)
            held.append(claim(services, job_id, CONTROL_STAGES))

    monkeypatch.setattr(publish, "reach", frozen_here)
    with pytest.raises(LostLease):
        publish_version(services, job_id, old)
    assert held == [old + 1]
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.PUBLISH
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, held[0])
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 2


def waits_for_a_lock(services) -> bool:
    """Whether a statement of this database waits for another's lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(services.settings.owner_database_url) as connection:
        return connection.execute(query).fetchone()[0] > 0


def test_a_request_that_is_being_batched_is_not_cancelled(api, services, model, monkeypatch):
    """Who cancels waits for the batch that holds it, and is told that it is too late."""
    request = submit(api)
    url, waiting = f"{REQUESTS}/{request['id']}", []

    def meanwhile(*arguments, **values):
        waiting.append(pool.submit(api.delete, url))
        assert wait_until(lambda: waits_for_a_lock(services), 20)
        return real_move(*arguments, **values)

    real_move = requests.move
    monkeypatch.setattr(requests, "move", meanwhile)
    with ThreadPoolExecutor() as pool:
        assert batch_requests(services, only_model(services)) is not None
        assert waiting[0].result().status_code == 409
    assert api.get(url).json()["status"] == "batched"


def test_a_request_that_is_being_cancelled_is_not_batched(api, services, model):
    """Who batches does not wait for it, and leaves it out."""
    request, other = submit(api), submit(api)
    with services.db.transaction() as session:
        cancelled = requests.by_id(session, request["id"], lock=True)
        requests.move(session, [cancelled], RequestStatus.CANCELLED)
        session.flush()
        job_id = batch_requests(services, only_model(services))
    found = [api.get(f"{REQUESTS}/{r['id']}").json() for r in (request, other)]
    assert [(f["status"], f["job_id"]) for f in found] == [("cancelled", None), ("batched", str(job_id))]


def test_a_log_that_somebody_else_holds_costs_no_attempt(services, job, monkeypatch):
    """A frozen process keeps the log's memory: the job is handed back, and goes on once that is over."""
    _, job_id = job
    to_certify(services, job_id)
    monkeypatch.setattr(log_keeper, "PATIENCE", 0.1)
    services.log.sign()
    with (services.settings.storage_dir / "ledger" / "log" / log_keeper.ENTRIES).open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
        with services.db.transaction() as session:
            found = session.get(Job, job_id)
            assert (found.stage, found.owner, found.attempts) == (Stage.CERTIFY, None, 0)
            found.not_before = None
        assert [(f.check, "held" in f.problem) for f in examine(services)] == [("log", True)]
    tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.DONE


def test_a_stop_is_heeded_between_certifying_and_publishing(services, job, monkeypatch):
    """The job is handed back with its certificate, and does not count as an attempt."""
    _, job_id = job
    to_certify(services, job_id)

    def and_stop(*arguments):
        certify_job(*arguments)
        tasks.stopping.set()

    monkeypatch.setitem(tasks.CONTROL_STEPS, Stage.CERTIFY, and_stop)
    try:
        tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
    finally:
        tasks.stopping.clear()
    with services.db.transaction() as session:
        found = session.get(Job, job_id)
        assert (found.stage, found.owner, found.attempts) == (Stage.PUBLISH, None, 0)


def test_a_callback_that_cannot_be_opened_keeps_no_other_waiting(api, services, model):
    """It counts as an attempt and is put off; the one behind it is looked at in the same call."""
    for _ in range(2):
        request = submit(api, callback_url="http://127.0.0.1:9/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(callback_url=b"not what was sealed"))
    assert deliver_callbacks(services) == 0
    with services.db.transaction() as session:
        assert session.scalars(select(Outbox.attempts)).all() == [1, 1]


def test_a_release_that_was_doomed_and_is_a_version_comes_back(services, job):
    """A collector that was frozen between its two transactions: a version came to name what it had doomed."""
    _, job_id = job
    publish_version(services, job_id, certified(services, job_id))
    with services.db.transaction() as session:
        digest = session.scalar(select(Version.digest).where(Version.number == 1))
    for folder, named in ((services.storage.release(digest), True), (services.storage.staging("x"), False)):
        doomed = services.storage.set_aside(folder)
        collect_garbage(services)
        assert doomed.exists()  # somebody may be at it
        os.utime(doomed, (0, 0))
        collect_garbage(services)
        assert folder.exists() is named
    assert list((services.settings.storage_dir / "staging").iterdir()) == []
