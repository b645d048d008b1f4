"""A batch that fails is split until the requests that make it fail stand alone."""

import base64
import datetime as dt
import json

import pytest

from service.audit.verify_log import Log, read_promises
from service.db import jobs, requests
from service.lease import fail_attempt, hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_put_off, store_rejected
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import (
    COMPUTE_STAGES,
    CONTROL_STAGES,
    about,
    claim,
    expire,
    fail_what_waits,
    publish_what_waits,
    to_certify,
)


def state(api, request: dict) -> tuple[str, str | None]:
    """Status and reason of a request."""
    answer = api.get(f"{REQUESTS}/{request['id']}").json()
    return answer["status"], answer["reason"]


def job_refs(services, job_id) -> list[str]:
    """The requests of a job, in the order in which the compute child counts them."""
    with services.db.reading() as session:
        return [request.ref for request in requests.of_job(session, job_id)]


def run(services, culprits: dict[str, str]) -> int:
    """Take jobs to their ends until none is left; a job with a culprit fails. Returns the number of jobs."""
    count = 0
    while job_id := batch_requests(services, only_model(services)):
        count += 1
        refs = job_refs(services, job_id)
        reason = next((culprits[ref] for ref in refs if ref in culprits), None)
        outcome = {"outcome": "failed", "reason": reason} if reason else {}
        to_certify(services, job_id, about(len(refs), **outcome))
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify_job(services, job_id, lease.fence)
            if not reason:
                publish_version(services, job_id, lease.fence)
    return count


def test_two_culprits_among_eight_fail_alone_with_their_own_reasons(api, services, model):
    """The six others are fulfilled, in fewer than sixteen jobs; every split is in the log."""
    sent = [submit(api) for _ in range(8)]
    culprits = {sent[1]["ref"]: "criterion_missed", sent[6]["ref"]: "budget_missed"}
    assert run(services, culprits) < 16
    for request in sent:
        reason = culprits.get(request["ref"])
        assert state(api, request) == (("failed", reason) if reason else ("completed", None))
    entries = [json.loads(base64.b64decode(e["entry"])) for e in api.get("/v1/log/entries").json()["items"]]
    splits = [entry for entry in entries if entry["kind"] == "job.split"]
    assert set(splits[0]["reopened"]) == {request["ref"] for request in sent}


def test_a_batch_that_an_attack_succeeded_on_is_not_tried_again_in_parts(api, services, model):
    """Over a part the same test is weaker: the parts could pass as they are."""
    sent = [submit(api) for _ in range(4)]
    assert run(services, {sent[2]["ref"]: "attack_succeeded"}) == 1
    assert {state(api, request) for request in sent} == {("failed", "attack_succeeded")}


def test_of_sixteen_requests_three_poisoned_ones_end_with_their_own_reasons(api, services, model):
    """Generic needles and an over-long text are rejected by the run, a text that breaks the budget stands alone."""
    sent = [submit(api) for _ in range(16)]
    unfit = {sent[2]["ref"]: "too_generic", sent[9]["ref"]: "too_long"}
    breaker = sent[13]["ref"]
    jobs_made = 0
    while job_id := batch_requests(services, only_model(services)):
        jobs_made += 1
        refs = job_refs(services, job_id)
        fence = claim(services, job_id)
        store_rejected(services, job_id, fence, {i: unfit[ref] for i, ref in enumerate(refs) if ref in unfit})
        expire(services, job_id)
        fit = [i for i, ref in enumerate(refs) if ref not in unfit]
        report = {**about(0), "verdicts": {str(i): "PASS" for i in fit}, "memorised": fit}
        broken = {"outcome": "failed", "reason": "utility_budget_exceeded"} if breaker in refs else {}
        to_certify(services, job_id, {**report, **broken})
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify_job(services, job_id, lease.fence)
            if not broken:
                publish_version(services, job_id, lease.fence)
    ends = {request["ref"]: state(api, request) for request in sent}
    assert ends.pop(breaker) == ("failed", "utility_budget_exceeded")
    assert {ref: ends.pop(ref) for ref in unfit} == {ref: ("rejected", reason) for ref, reason in unfit.items()}
    assert list(ends.values()) == [("completed", None)] * 13
    assert jobs_made <= 9  # one, and two for each halving of fourteen


def test_requests_that_missed_their_own_tests_are_parted_from_the_others_first(api, services, model):
    """So one job more fulfils the others."""
    sent = [submit(api) for _ in range(4)]
    first = fail_what_waits(services, **{"2": "FAIL"})
    assert [state(api, request) for request in sent] == [("pending", "split")] * 4
    publish_what_waits(services)
    assert [state(api, request)[0] for request in sent] == ["completed", "completed", "pending", "completed"]
    second = fail_what_waits(services, **{"0": "FAIL"})
    assert state(api, sent[2]) == ("failed", "criterion_missed")
    with services.db.reading() as session:
        assert str(jobs.by_id(session, second).split_of) == first


@pytest.mark.parametrize(
    ("reason", "separable"), [("child_killed", True), ("heldout_too_few", True), ("unknown_plugin", False)]
)
def test_a_job_that_is_given_up_is_split_unless_no_request_can_be_the_cause(api, services, model, reason, separable):
    """A text may kill the compute child, or be longer than most; a policy is wrong for all."""
    sent = [submit(api) for _ in range(2)]
    job_id = batch_requests(services, only_model(services))
    with hold_job(services, job_id, COMPUTE_STAGES) as lease:
        fail_attempt(services, lease, reason, permanent=True)
    assert [state(api, request) for request in sent] == [("pending", "split") if separable else ("failed", reason)] * 2


@pytest.mark.parametrize(("culprits", "jobs_made"), [(8, 3), (1, 7)])
def test_the_number_of_jobs_is_limited_while_none_passes(api, services, model, culprits, jobs_made):
    """What is left then fails together. Once a part has passed, the others are split until the culprit stands alone."""
    services.settings.max_split_jobs = 2
    sent = [submit(api) for _ in range(8)]
    assert run(services, {request["ref"]: "criterion_missed" for request in sent[8 - culprits :]}) == jobs_made
    ends = [state(api, request)[0] for request in sent]
    assert ends == ["completed"] * (8 - culprits) + ["failed"] * culprits


def test_the_requests_of_one_key_are_split_together(api, services, model, new_key):
    """One submitter's bad requests: the first split parts them from the requests of the others."""
    other = {"Authorization": f"Bearer {new_key('submit')}"}
    sent = [[submit(api) for _ in range(5)], [submit(api, headers=other) for _ in range(3)]]
    fail_what_waits(services)
    first = job_refs(services, batch_requests(services, only_model(services)))
    assert sorted(first) in [sorted(request["ref"] for request in group) for group in sent]


def test_other_requests_and_the_parts_of_a_batch_take_turns(api, services, model):
    """A long search for a culprit does not keep other requests waiting."""
    sent = [submit(api) for _ in range(4)]
    fail_what_waits(services)
    other = submit(api)
    publish_what_waits(services)
    assert [state(api, request)[0] for request in (*sent, other)].count("completed") == 2
    publish_what_waits(services)
    assert state(api, other)[0] == "completed"
    publish_what_waits(services)
    assert [state(api, request)[0] for request in sent] == ["completed"] * 4


def test_a_retry_by_an_operator_begins_anew(api, services, model):
    """The request goes into the next batch with others."""
    request = submit(api)
    fail_what_waits(services)
    other = submit(api)
    assert api.post(f"{REQUESTS}/{request['id']}/retry").status_code == 202
    publish_what_waits(services)
    assert [state(api, r)[0] for r in (request, other)] == ["completed"] * 2


def put_off(services, *indices: int):
    """Make a job of what waits, which puts these requests off; returns its id."""
    job_id = batch_requests(services, only_model(services))
    store_put_off(services, job_id, claim(services, job_id), list(indices))
    expire(services, job_id)
    return job_id


def finish(services, job_id) -> None:
    """Take a job to a version."""
    to_certify(services, job_id, about(len(job_refs(services, job_id))))
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)


def test_what_is_put_off_completes_in_a_job_without_another_keys_requests(api, services, model, new_key):
    """Its job goes on without it, and the log says that it is open until then."""
    other = {"Authorization": f"Bearer {new_key('submit')}"}
    sent = [submit(api), submit(api), submit(api, headers=other)]
    finish(services, put_off(services, 1, 2))
    assert [state(api, request) for request in sent] == [("completed", None), *[("pending", "split")] * 2]
    entries = [base64.b64decode(e["entry"]) for e in api.get("/v1/log/entries").json()["items"]]
    later = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=400)
    promises = read_promises(Log(None, entries, []), later)
    assert promises.overdue.startswith("2 accepted requests"), promises
    for _ in range(2):
        job_id = batch_requests(services, only_model(services))
        assert len(job_refs(services, job_id)) == 1
        finish(services, job_id)
    assert [state(api, request)[0] for request in sent] == ["completed"] * 3
    entries = [base64.b64decode(e["entry"]) for e in api.get("/v1/log/entries").json()["items"]]
    assert read_promises(Log(None, entries, []), later).overdue is None


def test_what_one_key_has_put_off_again_and_again_keeps_no_other_waiting(api, services, model, new_key):
    """Its requests are due first."""
    other = {"Authorization": f"Bearer {new_key('submit')}"}
    sent = [submit(api) for _ in range(4)]
    victim = submit(api, headers=other)
    finish(services, put_off(services, 1, 2, 3, 4))
    finish(services, put_off(services, 1, 2))
    publish_what_waits(services)
    assert [state(api, request)[0] for request in (*sent, victim)].count("completed") == 3
    assert state(api, victim)[0] == "completed"


def test_a_job_that_put_requests_off_and_fails_is_split_without_them(api, services, model):
    """They are a part of their own."""
    sent = [submit(api) for _ in range(4)]
    job_id = put_off(services, 0)
    with hold_job(services, job_id, COMPUTE_STAGES) as lease:
        fail_attempt(services, lease, "child_killed", permanent=True)
    assert [state(api, request) for request in sent] == [("pending", "split")] * 4
    sizes = []
    while job_id := batch_requests(services, only_model(services)):
        sizes.append(len(job_refs(services, job_id)))
        finish(services, job_id)
    assert sorted(sizes) == [1, 1, 2]
