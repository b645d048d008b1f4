"""A failed request stays due until it is retried with success, or until an operator resolves it."""

import base64
import json
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from service.callbacks.dialects import CallbackTarget, Notification
from service.db import jobs
from service.db.log_tables import AuditEntry
from service.db.tables import DeletionRequest, Outbox
from service.doctor import examine
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job, quarantine_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.upkeep.sweep import wake_lost_work
from tests.service.api.submissions import assert_problem
from tests.service.conftest import REQUESTS, logged, only_model, submit
from tests.service.jobs import REPORT, publish_what_waits, to_certify

pytestmark = pytest.mark.usefixtures("durable")

OVER_BUDGET = {**REPORT, "outcome": "failed", "reason": "utility_budget_exceeded"}


@pytest.fixture
def failed(api, services, job) -> dict:
    """A request past its deadline that passed its own tests, and whose job was over the utility budget."""
    request, job_id = job
    fail(services, job_id)
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(due_at=func.now() - timedelta(days=1)))
    return request | {"job_id": str(job_id)}


def fail(services, job_id) -> None:
    """Take a job to its end with a report that is over the budget."""
    to_certify(services, job_id, OVER_BUDGET)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)


def alarms(api, services) -> dict:
    """What each alarm says: metrics, doctor, alerts."""
    wake_lost_work(services)
    lines = [line.split(" ") for line in api.get("/metrics").text.splitlines() if not line.startswith("#")]
    values = {line[0]: float(line[-1]) for line in lines}
    with services.db.reading() as session:
        alerts = session.scalars(select(Outbox.status).where(Outbox.target < 0).order_by(Outbox.status)).all()
    return {
        "overdue": values["unlearnd_requests_overdue"],
        "failed": values["unlearnd_requests_failed_unresolved"],
        "late": values.get("unlearnd_next_deadline_seconds", 0) < 0,
        "doctor": [finding.check for finding in examine(services)],
        "alerts": alerts,
    }


def test_a_failed_request_past_its_deadline_stays_in_every_alarm(api, services, failed):
    """Metrics count it, the doctor names it, and the operator is alerted once that it is overdue."""
    expected = {
        "overdue": 1,
        "failed": 1,
        "late": True,
        "doctor": ["deadlines"],
        "alerts": ["due_soon", "failed", "overdue"],
    }
    assert alarms(api, services) == expected
    assert alarms(api, services) == expected  # and no alert is queued a second time


def test_resolving_ends_the_alarms_and_is_on_record(api, services, failed):
    """The answer, the row and the log say when, why and by whom; the status stays failed."""
    path = f"{REQUESTS}/{failed['id']}"
    answer = api.post(f"{path}/resolve", json={"reason": "handled_otherwise"}).json()
    assert (answer["status"], answer["resolved_reason"]) == ("failed", "handled_otherwise")
    assert answer["resolved_at"] is not None
    with services.db.reading() as session:
        entry = json.loads(session.scalar(select(AuditEntry.entry).order_by(AuditEntry.index.desc()).limit(1)))
        by = session.scalar(select(DeletionRequest.resolved_by))
    assert (entry["kind"], entry["ref"], entry["reason"]) == ("request.closed", failed["ref"], "handled_otherwise")
    assert entry["key"] == str(by)
    after = alarms(api, services)
    assert (after["overdue"], after["failed"], after["late"], after["doctor"]) == (0, 0, False, [])
    assert_problem(api.post(f"{path}/resolve", json={"reason": "other"}), 409)


def test_only_an_admin_resolves_and_only_what_failed(api, services, model, job, new_key):
    """A request that is open, unknown or of a caller without the scope is refused, and so is a reason of one's own."""
    path = f"{REQUESTS}/{job[0]['id']}/resolve"
    assert_problem(api.post(path, json={"reason": "withdrawn"}), 409)
    assert_problem(api.post(path, json={"reason": "a person's name"}), 422, "reason")
    unknown = f"{REQUESTS}/00000000-0000-0000-0000-000000000000/resolve"
    assert_problem(api.post(unknown, json={"reason": "other"}), 404)
    submitter = {"Authorization": f"Bearer {new_key('submit')}"}
    assert api.post(path, json={"reason": "other"}, headers=submitter).status_code == 403


def test_a_retry_of_a_resolved_request_is_due_again_until_it_is_published(api, services, failed):
    """The resolution is void once an operator tries again."""
    path = f"{REQUESTS}/{failed['id']}"
    api.post(f"{path}/resolve", json={"reason": "other"})
    retried = api.post(f"{path}/retry").json()
    assert (retried["status"], retried["resolved_at"], retried["resolved_reason"]) == ("pending", None, None)
    assert alarms(api, services)["overdue"] == 1
    publish_what_waits(services)
    assert api.get(path).json()["verdict"] == "PASS"
    after = alarms(api, services)
    assert (after["overdue"], after["failed"], after["doctor"]) == (0, 0, [])


def test_a_request_that_a_budget_failed_does_not_read_pass(api, services, failed):
    """API, callback and certificate say NOT_PUBLISHED; the attack did not succeed, and the certificate says FAIL."""
    state = api.get(f"{REQUESTS}/{failed['id']}").json()
    assert (state["status"], state["verdict"], state["reason"]) == ("failed", "NOT_PUBLISHED", OVER_BUDGET["reason"])
    with services.db.reading() as session:
        request = session.scalar(select(DeletionRequest))
        message = Notification(services, request, request.id, "failed", CallbackTarget("https://example.org")).ended
    assert message["verdict"] == "NOT_PUBLISHED"
    envelope = api.get(f"/v1/jobs/{failed['job_id']}/certificate").json()
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert [line["verdict"] for line in predicate["requests"]] == ["NOT_PUBLISHED"]
    mandatory = [attack["result"] for attack in predicate["verification"]["attacks"] if "effect" not in attack]
    assert (predicate["overall"], set(mandatory)) == ("FAIL", {"PASS"})


def test_a_failed_run_does_not_end_its_requests_in_the_log(api, services, failed):
    """The log names the requests that the run failed, so that its reader does not count them as dealt with."""
    (certified,) = [entry for entry in logged(services) if entry["kind"] == "job.certified"]
    assert (certified["overall"], certified["failed"]) == ("FAIL", [failed["ref"]])
    assert batch_requests(services, only_model(services)) is None


def test_a_resolved_request_ends_the_finding_of_its_quarantined_job(api, services, job):
    """The doctor names the job until each of its requests is retried or resolved."""
    request, job_id = job
    with services.db.transaction() as session:
        quarantine_job(
            session, jobs.by_id(session, job_id), "child_killed", max_split_jobs=services.settings.max_split_jobs
        )
    assert [finding.check for finding in examine(services)] == ["jobs"]
    api.post(f"{REQUESTS}/{request['id']}/resolve", json={"reason": "withdrawn"})
    assert examine(services) == []


def test_metrics_say_what_all_versions_cost_together(api, services, model):
    """Beside the ratio to the version before, the ratio to version 0."""
    submit(api)
    publish_what_waits(services)
    assert 'unlearnd_version_total_perplexity_ratio{model="tiny"} 1.02' in api.get("/metrics").text
