"""A job's events, streamed and taken up again; a job that is stopped."""

import json
from uuid import uuid4

import pytest
from sqlalchemy import select

from service.db.tables import AuditEntry
from service.domain.errors import LostLease
from service.domain.states import Stage
from service.lease import Lease, fail_attempt
from service.steps.path.batch import batch_requests
from service.steps.path.unlearn import store_epoch, store_stage
from tests.service.api.submissions import REQUESTS, assert_problem
from tests.service.conftest import only_model
from tests.service.jobs import EPOCH, claim, to_certify


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
    with services.db.reading() as session:
        entries = [json.loads(entry) for entry in session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index))]
    quarantined, cancelled = entries[-2:]
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
