"""A job's events, streamed and taken up again."""

from service.domain.states import Stage
from service.lease import Lease, fail_attempt
from service.steps.path.unlearn import store_epoch, store_stage
from tests.service.jobs import EPOCH, claim


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
