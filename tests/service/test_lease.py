"""One worker a job: claims, leases, fences and attempts."""

import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import exc, select, text, update

from service.db import job_events, jobs, leases
from service.db.tables import Job
from service.domain.errors import LostLease
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import Lease, fail_attempt, hand_back, hold_job, lose_attempt
from service.steps.path.batch import batch_requests
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch, store_progress, store_stage, store_thresholds
from service.steps.path.verify import store_report
from tests.growth import grow
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import EPOCH, REPORT, baseline, child_report, claim, expire
from tests.status_door import planting
from worker.steps import run
from worker.tasks import work_under_lease


def test_a_job_is_claimed_once_until_its_lease_runs_out(services, job):
    """A second message takes zero rows; after the lease the fence moves on."""
    _, job_id = job
    first = claim(services, job_id)
    assert claim(services, job_id) is None
    assert claim(services, job_id, CONTROL_STAGES) is None
    expire(services, job_id)
    second = claim(services, job_id)
    assert (first // leases.FENCES, second // leases.FENCES) == (1, 2)


def test_a_database_that_lost_a_claim_gives_its_fence_to_nobody_else(services, job):
    """The worker of the lost claim and the next one would both be let write."""
    _, job_id = job
    lost = claim(services, job_id)
    with services.db.transaction() as session:
        session.execute(text("UPDATE jobs SET fence = 0, owner = NULL, attempts = 0, lease_expires_at = NULL"))
    again = claim(services, job_id)
    assert (lost // leases.FENCES, again // leases.FENCES) == (1, 1)
    with services.db.transaction() as session:
        assert jobs.owned(session, job_id, again)
        with pytest.raises(LostLease):
            jobs.owned(session, job_id, lost)


RACER = """
import os, sys, threading
from uuid import UUID, uuid4
from service.bootstrap import build
from service.config import Settings
from service.db import job_events, jobs
from service.domain.states import COMPUTE_STAGES, Outcome
from worker.tasks import work_under_lease

services = build(Settings.model_validate_json(sys.argv[1]))
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)

def work(services, lease):
    os.write(out, f"{lease.job_id} begins\\n".encode())
    with services.db.transaction() as session:
        job = jobs.owned(session, lease.job_id, lease.fence)
        job.stage = "certify"
        jobs.finish(session, job, Outcome.REJECTED, None)
    os.write(out, f"{lease.job_id} ends\\n".encode())

def race():
    for job_id in sys.argv[3:]:
        work_under_lease(services, UUID(job_id), COMPUTE_STAGES, work)

threads = [threading.Thread(target=race) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
services.close()
"""


def test_two_workers_over_200_jobs_never_run_one_at_a_time_twice(services, model, tmp_path):
    """Two processes of four threads, each with a message for every job: each job begins once and ends before anything.

    (The same with whole compute workers and their children is in `tests/chaos`, marked slow.)
    """
    grow(services, "tiny", versions=200)
    with planting(), services.db.transaction() as session:
        # One active job a model is the rule; here what is asked is who claims, so the models are made up.
        for statement in (
            "INSERT INTO models (id, name, policy, retain, heldout) "
            "SELECT gen_random_uuid(), 'm' || n, '{}', '{}', '{}' FROM generate_series(1, 200) n",
            "WITH j AS (SELECT id, row_number() OVER () n FROM jobs), "
            "m AS (SELECT id, substr(name, 2)::int n FROM models WHERE name <> 'tiny') "
            "UPDATE jobs SET stage = 'queued', outcome = NULL, model_id = m.id FROM j, m "
            "WHERE j.id = jobs.id AND m.n = j.n",
        ):
            session.execute(text(statement))
        ids = [str(i) for i in session.scalars(select(Job.id))]
    fences_file = tmp_path / "told"
    fences_file.touch()
    arguments = [services.settings.model_dump_json(), str(fences_file), *ids]
    racers = [subprocess.Popen([sys.executable, "-c", RACER, *arguments]) for _ in range(2)]
    assert [racer.wait(120) for racer in racers] == [0, 0]
    lines = fences_file.read_text().splitlines()
    assert sorted(lines) == sorted(f"{i} {word}" for i in ids for word in ("begins", "ends"))
    assert len(ids) == 200
    with services.db.reading() as session:
        assert {fence // leases.FENCES for fence in session.scalars(select(Job.fence))} == {1}


def test_a_zombies_writes_are_refused_by_the_fence(services, job):
    """Every write under the old fence raises, and the heartbeat says lost. (Without `Job.fence == fence` in
    `jobs.owned` and `jobs.heartbeat` this fails: checked by removing them.)"""
    _, job_id = job
    old = claim(services, job_id)
    expire(services, job_id)
    new = claim(services, job_id)
    writes = [
        lambda f: store_stage(services, job_id, f, Stage.UNLEARN),
        lambda f: store_progress(services, job_id, f, "train", 0.5),
        lambda f: store_thresholds(services, job_id, f, baseline(REPORT)),
        lambda f: store_epoch(services, job_id, f, EPOCH),
        lambda f: store_report(services, job_id, f, child_report(REPORT)),
        lambda f: publish_version(services, job_id, f),
    ]
    for write in writes:
        with pytest.raises(LostLease):
            write(old)
    lease = Lease(services, job_id, old)
    lease.beat()
    assert lease.lost.is_set()
    for write in writes[:4]:
        write(new)


def losses(services, job_id) -> tuple[int, int]:
    """(attempts, losses) of the job."""
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        return job.attempts, job.losses


def test_a_lost_worker_is_no_attempt_of_the_job(api, services, job):
    """Neither one that vanished nor a child that was killed; each makes the job wait longer. Progress forgets them."""
    _, job_id = job
    fence = claim(services, job_id)
    for lost in range(1, 7):
        expire(services, job_id, seconds=2 ** (lost - 1))  # the first one is replaced at once
        fence = claim(services, job_id)
        assert losses(services, job_id) == (1, lost)
    expire(services, job_id, seconds=30)
    assert claim(services, job_id) is None
    lose_attempt(services, Lease(services, job_id, fence), "child_killed")
    assert losses(services, job_id) == (0, 7)
    assert api.get(f"/v1/jobs/{job_id}").json()["losses"] == 7
    assert claim(services, job_id) is None
    with services.db.transaction() as session:
        session.execute(update(Job).values(not_before=None))
    fence = claim(services, job_id)
    store_stage(services, job_id, fence, Stage.UNLEARN)
    assert losses(services, job_id) == (1, 0)
    expire(services, job_id)
    fence = claim(services, job_id)
    store_epoch(services, job_id, fence, EPOCH)
    assert losses(services, job_id) == (1, 0)
    expire(services, job_id)
    fence = claim(services, job_id)
    store_epoch(services, job_id, fence, EPOCH)  # a resumed attempt repeats it: no progress
    store_stage(services, job_id, fence, Stage.UNLEARN)
    assert losses(services, job_id) == (1, 1)


@pytest.mark.parametrize(
    "error", [exc.OperationalError(None, None, OSError()), psycopg.OperationalError(), exc.TimeoutError()]
)
def test_a_database_that_is_away_is_no_failure_of_a_job(services, job, error):
    """It fails over, say, while a worker stores its progress."""
    _, job_id = job

    def work(*_):
        raise error

    work_under_lease(services, job_id, COMPUTE_STAGES, work)
    assert losses(services, job_id) == (0, 1)


def test_a_child_that_is_killed_too_often_is_given_up(api, services, job):
    """The kernel kills it for memory, say, each time at the same place."""
    _, job_id = job
    for _ in range(services.settings.max_losses):
        with services.db.transaction() as session:
            session.execute(update(Job).values(not_before=None))
        lose_attempt(services, Lease(services, job_id, claim(services, job_id)), "child_killed")
    state = api.get(f"/v1/jobs/{job_id}").json()
    assert (state["stage"], state["reason"]) == ("quarantined", "child_killed")


def test_attempts_are_counted_and_given_up(api, services, job):
    """Back-off between attempts, then quarantine with the reason; a graceful stop does not count."""
    request, job_id = job
    for attempt in range(1, 4):
        fence = claim(services, job_id)
        assert fence is not None
        hand_back(services, Lease(services, job_id, fence))
        fence = claim(services, job_id)
        fail_attempt(services, Lease(services, job_id, fence), "child_died", permanent=False)
        assert claim(services, job_id) is None
        with services.db.transaction() as session:
            assert session.get(Job, job_id).attempts == attempt
            session.execute(update(Job).values(not_before=None))
    assert api.get(f"/v1/jobs/{job_id}").json()["stage"] == "quarantined"
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["verdict"], state["reason"]) == ("failed", "NOT_TESTED", "child_died")
    submit(api)
    assert batch_requests(services, only_model(services)) is not None


CHILD = """
import json, sys
texts = json.loads(sys.stdin.buffer.readline())["texts"]
put_off = {"type": "put_off", "requests": [1]}
print(json.dumps(put_off if len(texts) > 1 else {"type": "error", "code": "alone", "permanent": True}), flush=True)
sys.stdin.buffer.read()
"""


@pytest.mark.parametrize(
    ("end", "counts", "reason"),
    [("os.kill(os.getpid(), 9)", (0, 1), "child_killed"), ("sys.exit(1)", (1, 0), "child_died")],
)
def test_a_child_that_was_killed_is_lost_and_one_that_ends_has_failed(services, job, monkeypatch, end, counts, reason):
    """Whoever kills it, the kernel too, is outside of the job."""
    _, job_id = job
    children, command = [], [sys.executable, "-c", f"import os, sys; {end}"]

    def start_child(inputs, *, confined, devices):
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0))
        return children[-1]

    monkeypatch.setattr(run, "start_child", start_child)
    with hold_job(services, job_id, COMPUTE_STAGES) as lease:
        run.run_job(services, lease)
    assert losses(services, job_id) == counts
    with services.db.reading() as session:
        assert job_events.after(session, job_id, 0)[-1].data["reason"] == reason


def test_a_job_begins_again_without_what_it_put_off(api, services, model, monkeypatch):
    """In the same attempt: the child counts the requests anew."""
    sent = [submit(api), submit(api)]
    job_id = batch_requests(services, only_model(services))

    children, pipe = [], subprocess.PIPE

    def start_child(inputs, *, confined, devices):
        children.append(subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, process_group=0))
        return children[-1]

    monkeypatch.setattr(run, "start_child", start_child)
    with hold_job(services, job_id, COMPUTE_STAGES) as lease:
        run.run_job(services, lease)
    states = [api.get(f"{REQUESTS}/{request['id']}").json() for request in sent]
    assert [(state["status"], state["reason"]) for state in states] == [("failed", "alone"), ("pending", "split")]
