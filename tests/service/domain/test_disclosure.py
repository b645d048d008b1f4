"""Exact means of few submitters are for auditors alone."""

import pytest

from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch, store_thresholds
from tests.service.conftest import only_model, submit
from tests.service.jobs import REPORT, baseline, claim, expire, to_certify


@pytest.fixture
def as_(api, new_key):
    """GET with a key of these scopes."""

    def get(path: str, *scopes: str):
        return api.get(path, headers={"Authorization": f"Bearer {new_key(*scopes)}"})

    return get


@pytest.mark.parametrize(("requests_", "submitters"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_means_of_few_submitters_are_shown_to_auditors_alone(api, services, model, as_, new_key, requests_, submitters):
    """In jobs, their history and events, and versions. Whoever submitted two of three could subtract its own."""
    keys = [new_key("submit") for _ in range(submitters)]
    for i in range(requests_):
        submit(api, headers={"Authorization": f"Bearer {keys[i % submitters]}"})
    job_id = batch_requests(services, only_model(services))
    members = range(requests_)
    report = {**REPORT, "verdicts": {str(i): "PASS" for i in members}, "memorised": list(members)}
    fence = claim(services, job_id)
    store_thresholds(services, job_id, fence, baseline(report))
    epoch = {
        "epoch": 1,
        "el": 0.123,
        "ma": 0.456,
        "loss": 0.789,
        "forget_loss": 0.777,
        "retain_loss": 2.0,
        "met": False,
        "el_limit": 0.0,
        "ma_limit": 0.4,
        "strength": 0.611,
        "perplexity": 9.0,
        "seconds": 1.0,
    }
    store_epoch(services, job_id, fence, epoch)
    expire_and_certify(services, job_id, report)
    places = [f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/history", f"/v1/jobs/{job_id}/events", "/v1/jobs"]
    versions = ["/v1/models/tiny/versions/1", "/v1/models/tiny/versions"]
    for place in places + versions:
        exact = as_(place, "read", "audit").text
        assert as_(place, "admin").text == exact
        assert ("0.456" in exact) == (place in places)
        hidden = as_(place, "read", "submit").text
        for number in ("0.123", "0.456", "0.789", "0.777", "0.611"):  # exact means of an epoch, and of training
            assert number not in hidden, (place, number)
        for mean in ('"ma":0.95', '"ma":0.3}', '"ma":0.45'):  # coarse: as they are, and of 0.456
            coarse = mean in exact.replace(" ", "") or (mean == '"ma":0.45' and place in places)
            assert (mean in hidden.replace(" ", "")) == (coarse and submitters == 3), (place, mean)
        assert "0.4" in hidden or "history" in place  # limits are of held-out text


def expire_and_certify(services, job_id, report) -> None:
    """Take the job to its version."""
    expire(services, job_id)
    to_certify(services, job_id, report)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)
