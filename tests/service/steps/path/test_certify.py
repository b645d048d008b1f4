"""Certificates of passed and failed runs, and what interrupts certifying."""

import base64
import fcntl
import json
import shutil
from pathlib import Path

import pytest

from service.audit.receipt import verify_record
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import verify
from service.db import jobs
from service.db.tables import Job
from service.doctor import examine
from service.domain.states import CONTROL_STAGES, Stage
from service.evidence import log_memory
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.verify import MOST_NAMED
from tests.service.conftest import REQUESTS, only_model, registration, submit
from tests.service.jobs import REPORT, published, release_folder, to_certify
from worker import tasks


@pytest.fixture
def trust(services, tmp_path) -> Path:
    """The issuer's trust.json, as given out of band."""
    path = tmp_path / "given" / "trust.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(services.keyring.trust())
    return path


def test_a_receipt_shows_the_text_in_the_record_of_a_failed_run_too(api, services, model, trust, tmp_path):
    """Signed at intake, with the deadline and a checkpoint; in no other answer; good for a FAIL as for a PASS."""
    services.log.sign()
    request = submit(api, records=[{"text": "the first"}, {"text": "the second"}])
    receipt = tmp_path / "receipt.json"
    receipt.write_text(json.dumps(request))
    content = json.loads(base64.b64decode(request["receipt"]["signed"]["payload"]))
    assert content["checkpoint"] == services.log.checkpoint()
    assert content["due_at"][:10] == request["due_at"][:10]
    later = api.get(f"{REQUESTS}/{request['id']}").text
    assert all(nonce["nonce"] not in later for nonce in request["receipt"]["records"])
    job_id = batch_requests(services, only_model(services))
    failed = {"outcome": "failed", "reason": "criterion_missed", "verdicts": {"0": "FAIL"}}
    to_certify(services, job_id, {**REPORT, **failed})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    certificate = tmp_path / "certificate.json"
    certificate.write_bytes(api.get(f"/v1/jobs/{job_id}/certificate").content)
    verified = verify_record(receipt, b"the second", certificate, trust)
    assert (verified.record, verified.ref, verified.verdict, verified.overall) == (1, request["ref"], "FAIL", "FAIL")
    with pytest.raises(VerificationError) as caught:
        verify_record(receipt, b"the second ", certificate, trust)
    assert caught.value.code == ExitCode.NOT_IN_REQUEST
    statement = json.loads(base64.b64decode(json.loads(certificate.read_bytes())["payload"]))
    assert "model.sig" not in {s["name"] for s in statement["subject"]}  # what failed is not signed for release


def test_a_record_is_shown_to_people(api, services, model):
    """As a page that runs nothing, and as Markdown; of a version and of a job."""
    request = published(api, services, "a record")
    for place in ("/v1/models/tiny/versions/1/certificate", f"/v1/jobs/{request['job_id']}/certificate"):
        page = api.get(place, params={"as": "html"})
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert request["ref"] in page.text
        assert request["ref"] in api.get(place, params={"as": "markdown"}).text
        assert api.get(place, params={"as": "pdf"}).status_code == 422


@pytest.mark.usefixtures("durable")
def test_a_log_that_somebody_else_holds_costs_no_attempt(services, job, monkeypatch):
    """A frozen process keeps the log's memory: the job is handed back, and goes on once that is over."""
    _, job_id = job
    to_certify(services, job_id)
    monkeypatch.setattr(log_memory, "LOCK_TIMEOUT_SECONDS", 0.1)
    services.log.sign()
    with (services.settings.storage_dir / "ledger" / "log" / log_memory.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
        with services.db.transaction() as session:
            row = session.get(Job, job_id)
            assert (row.stage, row.owner, row.attempts) == (Stage.CERTIFY, None, 0)
            row.not_before = None
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
        row = session.get(Job, job_id)
        assert (row.stage, row.owner, row.attempts) == (Stage.PUBLISH, None, 0)


def test_each_version_keeps_the_base_models_card(api, services, base, tmp_path):
    """The second version's card has the base's text, and the section of the second version alone."""
    shutil.copytree(base / "model", tmp_path / "m")
    text = b"---\nlicense: mit\n---\n# The base\n\nUnlearned from nothing: as trained, with all guarantees.\n"
    (tmp_path / "m" / "README.md").write_bytes(text)
    assert api.post("/v1/models", json=registration(base, path=str(tmp_path / "m"))).status_code == 201
    for number in (1, 2):
        published(api, services, f"record {number}")
        card = api.get(f"/v1/models/tiny/versions/{number}/files/model/README.md").content
        assert card.startswith(text)
        assert card.count(b"# tiny, version") == card.count(b"# tiny, version %d\n" % number) == 1
        verify(release_folder(api, services, number))


def test_a_failed_run_is_certified_as_failed_and_publishes_nothing(api, services, job):
    """Its record says FAIL and can be fetched; the offline verifier does not take it for a release."""
    request, job_id = job
    report = {**REPORT, "outcome": "failed", "reason": "criterion_missed", "verdicts": {"0": "FAIL"}}
    to_certify(services, job_id, {**report, "after": {"el": 0.5, "ma": 0.9}})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["verdict"], state["reason"]) == ("failed", "FAIL", "criterion_missed")
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 0
    envelope = api.get(f"/v1/jobs/{job_id}/certificate").json()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    retried = api.post(f"{REQUESTS}/{request['id']}/retry").json()
    assert (retried["status"], retried["job_id"]) == ("pending", None)


def test_a_job_names_some_of_many_requests_that_came_back_and_its_record_all(api, services, job):
    """A compute worker's login may write 64 KiB of metrics: else it could not store what it found."""
    refs = [f"{n:032x}" for n in range(2000)]
    earlier = {"requests": 2000, "regressed": refs, "exact": 2000}
    to_certify(
        services, job[1], {**REPORT, "outcome": "failed", "reason": "earlier_request_regressed", "earlier": earlier}
    )
    with services.db.reading() as session:
        row = jobs.by_id(session, job[1])
        assert row.metrics["earlier"] == {**earlier, "regressed": refs[:MOST_NAMED]}
        assert row.report.findings.earlier.regressed == refs
        assert len(json.dumps(row.metrics)) < 65536


def test_a_regression_says_which_request(api, services, job):
    """An earlier request that came back blocks publication; job and record name it."""
    request, job_id = job
    earlier = {"requests": 2, "regressed": ["e" * 32], "exact": 1}
    failed = {"outcome": "failed", "reason": "earlier_request_regressed", "earlier": earlier}
    to_certify(services, job_id, {**REPORT, **failed})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["reason"]) == ("failed", "earlier_request_regressed")
    assert api.get(f"/v1/jobs/{job_id}").json()["metrics"]["earlier"] == earlier
    record = json.loads(base64.b64decode(api.get(f"/v1/jobs/{job_id}/certificate").json()["payload"]))["predicate"]
    assert (record["overall"], record["verification"]["earlier"]) == ("FAIL", earlier)
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 0
