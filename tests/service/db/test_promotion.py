"""A standby that lagged behind is promoted: nothing is published twice, no job fails for it, what is lost is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.audit.checkpoint import read_checkpoint
from service.db import diagnostics, jobs, log_entries
from service.db.tables import Job
from service.doctor import examine
from service.domain.errors import LostLease
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES
from service.local.process import wait_until
from service.steps.path.batch import batch_requests
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import claim, expire, publish_what_waits, published, to_certify
from tests.service.nodes import nodes
from tests.service.served import environment
from worker import tasks
from worker.tasks import certify_and_publish, work_under_lease


@pytest.fixture
def pair():
    """Two servers, one of which follows the other."""
    with nodes() as both:
        yield both


@pytest.fixture
def database_url(pair):
    """The database on both."""
    return pair.url()


def problems(services) -> str:
    """What the doctor says of the log."""
    return "\n".join(finding.problem for finding in examine(services) if finding.check == "log")


def say(services, lease) -> None:
    """A step that has something to say in the log."""
    with services.db.transaction() as session:
        jobs.owned(session, lease.job_id, lease.fence)
        log_entries.append(session, "job.thresholds", job=str(lease.job_id))


def counts(services, job_id) -> tuple:
    """What a job shows of its attempts."""
    with services.db.reading() as session:
        job = session.get(Job, job_id)
        return job.stage, job.attempts, job.losses, job.owner


def state(api) -> str:
    """What the API says of its database: `away` until it has left the lost one's connections."""
    return api.get("/readyz").json()["database"]


def numbers(api) -> list[int]:
    """The versions of the model, newest first."""
    return [version["version"] for version in api.get("/v1/models/tiny/versions").json()["items"]]


@pytest.mark.slow
def test_a_standby_that_lost_the_last_commits_goes_on(api, services, model, pair, monkeypatch):
    """A publication and a request are lost with the first server. The one is taken up again, the other is named."""
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    published(api, services, "the first record")
    second = submit(api, records=[{"text": "the second record"}])
    job_id = batch_requests(services, only_model(services))
    pair.wait_for_second()
    pair.stop_second()
    to_certify(services, job_id)
    work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)
    key = {"Idempotency-Key": "sent-twice"}
    lost = submit(api, headers=key, records=[{"text": "a record that is lost"}])
    signed = read_checkpoint(services.log.sign())
    pair.lose_first()
    pair.promote_second()

    assert wait_until(lambda: state(api) == "moved", 30)
    assert api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "x"}]}).status_code == 503
    assert "does not go on in this database" in problems(services)
    assert numbers(api) == [1, 0]
    work_under_lease(services, job_id, COMPUTE_STAGES, say)
    assert counts(services, job_id) == ("queued", 0, 0, None)

    tasks.sweep()
    assert state(api) == "ok"
    assert numbers(api) == [2, 1, 0]
    assert api.get(f"{REQUESTS}/{second['id']}").json()["status"] == "completed"
    assert api.get(f"{REQUESTS}/{lost['id']}").status_code == 404
    assert lost["ref"] in problems(services)
    services.log.sign()
    assert services.log.tree().subtree(0, signed.size) == signed.root

    again = submit(api, headers=key, records=[{"text": "a record that is lost"}])
    publish_what_waits(services)
    assert numbers(api) == [3, 2, 1, 0]
    assert api.get(f"{REQUESTS}/{again['id']}").json()["status"] == "completed"
    command = [str(Path(sys.executable).parent / "unlearnd"), "reconcile", "--seen"]
    subprocess.run(command, check=True, env=environment(services), stdout=subprocess.DEVNULL)
    assert problems(services) == ""
    with services.db.reading() as session:
        ends = [json.loads(entry) for entry in log_entries.entries(session, signed.size, 100)]
    assert [(e["ref"], e["reason"]) for e in ends if e["kind"] == "request.closed"] == [(lost["ref"], "lost")]


@pytest.mark.slow
def test_nothing_is_lost_with_a_standby_that_kept_up(api, services, model, pair, monkeypatch):
    """The log goes on where it was after the next sweep, and an operator hears of the move."""
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    request = submit(api)
    services.log.sign()
    job_id = batch_requests(services, only_model(services))
    fence = claim(services, job_id)
    pair.wait_for_second()
    pair.lose_first()
    pair.promote_second()
    assert wait_until(lambda: state(api) == "moved", 30)
    tasks.sweep()
    with services.db.transaction() as session, pytest.raises(LostLease):
        jobs.owned(session, job_id, fence)  # later commits of this claim may be lost
    expire(services, job_id)
    assert claim(services, job_id)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["status"] == "batched"
    assert "had lost: 0." in problems(services)
    pair.set_second("synchronous_standby_names", "*")
    with services.db.reading() as session:
        assert diagnostics.waits_for_standby(session)
    pair.set_second("synchronous_standby_names", "")
    assert submit(api, records=[{"text": "another"}])
