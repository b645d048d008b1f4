"""Who sees which jobs, a job's events, streamed and taken up again, and a job that is stopped."""

import json
import threading
from uuid import UUID, uuid4

import httpx
import pytest

from service.db import api_keys
from service.domain.errors import LostLease
from service.domain.states import CONTROL_STAGES, Stage
from service.lease import Lease, fail_attempt
from service.local.process import wait_until
from service.steps.path.batch import batch_requests
from service.steps.path.unlearn import store_epoch, store_stage
from tests.service.api.submissions import REQUESTS, assert_problem
from tests.service.conftest import logged, only_model, submit
from tests.service.jobs import EPOCH, REPORT, age, claim, publish_what_waits, to_certify
from tests.service.served import served


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
    fail_attempt(services, Lease(services, job_id, fence), "child_killed", permanent=False)
    age(services, not_before=None)
    to_certify(services, job_id, REPORT)
    fail_attempt(services, Lease(services, job_id, claim(services, job_id, CONTROL_STAGES)), "x", permanent=True)
    job = api.get(f"/v1/jobs/{job_id}", headers=submitter).json()
    assert (job["metrics"], job["stage"], job["progress"]) == ({}, "quarantined", 0.95)
    steps = job.pop("steps")
    assert [(step["kind"], step["stage"], step["reason"]) for step in steps] == [
        ("stage", "queued", None),
        *(("stage", stage, None) for stage in ("unlearn", "merge", "verify", "certify", "quarantined")),
        ("done", None, "x"),
    ]
    assert api.get("/v1/jobs", headers=submitter).json()["items"] == [job]
    lines = api.get(f"/v1/jobs/{job_id}/events", headers=submitter).text.split("\r\n")
    kinds = {line[7:] for line in lines if line.startswith("event: ")}
    shown = {name for line in lines if line.startswith("data: ") for name in json.loads(line[6:])}
    assert kinds == {"stage", "done"}
    assert shown <= {"stage", "progress", "epoch", "outcome", "reason"}
    assert api.get(f"/v1/jobs/{job_id}/history", headers=submitter).status_code == 403
    retries = [step["reason"] for step in api.get(f"/v1/jobs/{job_id}").json()["steps"] if step["kind"] == "retry"]
    assert retries == ["child_killed"]  # the operator sees more
    everything = api.get(f"/v1/jobs/{job_id}/events").text
    assert "event: epoch" in everything
    assert "event: thresholds" in everything


def test_a_stream_ends_when_its_key_is_revoked(api, services, job):
    """In a process that did not revoke it; another key's stream goes on, and the revoked one sees no later event."""
    _, job_id = job
    made = [api.post("/v1/api-keys", json={"name": "x", "scopes": ["read"]}).json() for _ in range(2)]
    seen: dict[str, list[str]] = {key["id"]: [] for key in made}
    with served(services, request_seconds=300) as address:

        def follow(key: dict) -> None:
            url = f"http://{address[0]}:{address[1]}/v1/jobs/{job_id}/events"
            headers = {"Authorization": f"Bearer {key['key']}"}
            with httpx.stream("GET", url, headers=headers, trust_env=False, timeout=300) as stream:
                for line in stream.iter_lines():
                    seen[key["id"]].append(line)

        streams = [threading.Thread(target=follow, args=[key]) for key in made]
        for stream in streams:
            stream.start()
        assert wait_until(lambda: all("event: stage" in lines for lines in seen.values()), 60)
        assert api.delete(f"/v1/api-keys/{made[0]['id']}").status_code == 204
        assert wait_until(lambda: not streams[0].is_alive(), 60)
        assert streams[1].is_alive()
        fence = claim(services, job_id)
        store_stage(services, job_id, fence, Stage.UNLEARN)
        fail_attempt(services, Lease(services, job_id, fence), "x", permanent=True)
        assert wait_until(lambda: not streams[1].is_alive(), 60)
    assert "event: done" in seen[made[1]["id"]]
    assert "event: done" not in seen[made[0]["id"]]


def test_whoever_expired_or_was_revoked_is_not_valid(services, new_key):
    """A stream asks before it shows an event."""
    secret = new_key("read")
    with services.db.transaction() as session:
        caller = api_keys.find_caller(session, api_keys.hash_key(secret))
        assert api_keys.is_valid(session, caller)
        assert not api_keys.is_valid(session, api_keys.Caller(caller.id, caller.scopes, 1.0))
        assert not api_keys.is_valid(session, api_keys.Caller(UUID(int=1), ["read"]))
        api_keys.revoke(session, caller.id)
        assert not api_keys.is_valid(session, caller)


@pytest.mark.parametrize("stage", [None, Stage.QUEUED, Stage.UNLEARN, Stage.VERIFY])
def test_a_job_that_computes_is_cancelled(api, services, job, stage):
    """Its worker writes nothing more and loses the lease, its requests fail, and a retry brings them into a new job."""
    request, job_id = job
    fence = claim(services, job_id) if stage else None
    for reached in (Stage.UNLEARN, Stage.VERIFY)[: {Stage.UNLEARN: 1, Stage.VERIFY: 2}.get(stage, 0)]:
        store_stage(services, job_id, fence, reached)
    answer = api.post(f"/v1/jobs/{job_id}/cancel").json()
    assert (answer["stage"], answer["reason"]) == ("quarantined", "cancelled")
    failed = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (failed["status"], failed["reason"]) == ("failed", "cancelled")
    assert claim(services, job_id) is None
    if fence:
        lease = Lease(services, job_id, fence)
        lease.beat()
        assert lease.lost.is_set()
        with pytest.raises(LostLease):
            store_epoch(services, job_id, fence, EPOCH)
    assert [r["status"] for r in api.post(f"/v1/jobs/{job_id}/retry").json()] == ["pending"]
    assert batch_requests(services, only_model(services)) not in (None, job_id)


def test_who_cancelled_a_job_is_in_the_log(api, services, job, new_key):
    """With the id of the API key; a key without the scope admin cannot."""
    _, job_id = job
    others = {"Authorization": f"Bearer {new_key('read', 'submit', 'approve', 'audit')}"}
    assert_problem(api.post(f"/v1/jobs/{job_id}/cancel", headers=others), 403)
    api.post(f"/v1/jobs/{job_id}/cancel")
    quarantined, cancelled = logged(services)[-2:]
    assert (quarantined["kind"], quarantined["reason"]) == ("job.quarantined", "cancelled")
    admin = next(key["id"] for key in api.get("/v1/api-keys").json()["items"] if key["scopes"] == ["admin"])
    assert (cancelled["kind"], cancelled["job"], cancelled["key"]) == ("job.cancelled", str(job_id), admin)


def test_a_job_whose_result_is_certified_or_that_has_ended_is_not_cancelled(api, services, job):
    """409, and the job goes on; an unknown id is 404."""
    _, job_id = job
    to_certify(services, job_id)
    assert_problem(api.post(f"/v1/jobs/{job_id}/cancel"), 409)
    assert api.get(f"/v1/jobs/{job_id}").json()["stage"] == "certify"
    assert_problem(api.post(f"/v1/jobs/{uuid4()}/cancel"), 404)
