"""Who sees which jobs, and a job's events, streamed and taken up again."""

import json

import pytest

from service.domain.states import CONTROL_STAGES, Stage
from service.lease import Lease, fail_attempt
from service.steps.path.batch import batch_requests
from service.steps.path.unlearn import store_epoch, store_stage
from tests.service.conftest import only_model, submit
from tests.service.jobs import EPOCH, REPORT, claim, expire, publish_what_waits, to_certify


def test_events_are_streamed_and_taken_up_again(api, services, job):
    """Server-Sent Events come with ids; Last-Event-ID goes on behind; the stream ends with the job."""
    _, job_id = job
    fence = claim(services, job_id)
    store_stage(services, job_id, fence, Stage.UNLEARN)
    store_epoch(services, job_id, fence, EPOCH)
    fail_attempt(services, Lease(services, job_id, fence), "x", permanent=True)
    lines = api.get(f"/v1/jobs/{job_id}/events").text.split("\n")
    kinds = [line.strip()[7:] for line in lines if line.startswith("event: ")]
    ids = [line.strip()[4:] for line in lines if line.startswith("id: ")]
    assert kinds == ["stage", "stage", "epoch", "stage", "done"]
    again = api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": ids[2]}).text
    assert [line.strip()[4:] for line in again.split("\n") if line.startswith("id: ")] == ids[3:]
    assert api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}).status_code == 422
    assert [e["epoch"] for e in api.get(f"/v1/jobs/{job_id}/history").json()] == [1]


def headers(key: str) -> dict[str, str]:
    """The header of an API key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def hers(api, services, model, new_key):
    """(job id, its submitter's headers) of a published job; another submitter's job is published after it."""
    submitter = headers(new_key("submit"))
    job_id = None
    for owner in (submitter, headers(new_key("submit"))):
        request = submit(api, headers=owner)
        publish_what_waits(services)
        job_id = job_id or api.get(f"/v1/deletion-requests/{request['id']}").json()["job_id"]
    return job_id, submitter


def test_a_submitter_sees_the_jobs_of_its_own_requests_alone(api, hers, new_key):
    """Another key with `submit` finds no such job: not in the list, not by its id, its events or its certificate."""
    job_id, submitter = hers
    stranger = headers(new_key("submit", "download"))
    assert [job["id"] for job in api.get("/v1/jobs", headers=submitter).json()["items"]] == [job_id]
    assert api.get("/v1/jobs", headers=stranger).json()["items"] == []
    for part in ("", "/events", "/certificate"):
        assert api.get(f"/v1/jobs/{job_id}{part}", headers=submitter).status_code == 200, part
        assert api.get(f"/v1/jobs/{job_id}{part}", headers=stranger).status_code == 404, part
    for scope in ("read", "approve", "audit", "admin"):
        for part in ("", "/events", "/certificate", "/history"):
            assert api.get(f"/v1/jobs/{job_id}{part}", headers=headers(new_key(scope))).status_code == 200, scope
        assert len(api.get("/v1/jobs", headers=headers(new_key(scope, "submit"))).json()["items"]) == 2


def test_a_submitter_sees_progress_and_no_number(api, services, model, new_key):
    """No metrics in the job, no epochs in its events, no history."""
    submitter = headers(new_key("submit"))
    submit(api, headers=submitter)
    job_id = batch_requests(services, only_model(services))
    fence = claim(services, job_id)
    store_epoch(services, job_id, fence, EPOCH)
    expire(services, job_id)
    to_certify(services, job_id, REPORT)
    fail_attempt(services, Lease(services, job_id, claim(services, job_id, CONTROL_STAGES)), "x", permanent=True)
    job = api.get(f"/v1/jobs/{job_id}", headers=submitter).json()
    assert (job["metrics"], job["stage"], job["progress"]) == ({}, "quarantined", 0.95)
    assert api.get("/v1/jobs", headers=submitter).json()["items"] == [job]
    lines = api.get(f"/v1/jobs/{job_id}/events", headers=submitter).text.split("\r\n")
    kinds = {line[7:] for line in lines if line.startswith("event: ")}
    shown = {name for line in lines if line.startswith("data: ") for name in json.loads(line[6:])}
    assert kinds == {"stage", "done"}
    assert shown <= {"stage", "progress", "epoch", "outcome", "reason"}
    assert api.get(f"/v1/jobs/{job_id}/history", headers=submitter).status_code == 403
    everything = api.get(f"/v1/jobs/{job_id}/events").text
    assert "event: epoch" in everything
    assert "event: thresholds" in everything
