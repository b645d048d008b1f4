"""What the API gives for evidence, and to whom."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import select

from service.audit.commitments import commit
from service.audit.receipt import verify_record
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import verify
from service.config import Settings
from service.db.session import Database
from service.db.tables import AuditEntry, DeletionRequest, Job, Version
from service.doctor import examine
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch, store_thresholds
from service.steps.upkeep.purge import purge_due
from tests.integration.conftest import REQUESTS, only_model, submit
from tests.integration.test_operations import age, publish_what_waits, published
from tests.integration.test_queue import REPORT, baseline, claim, expire, to_certify
from worker.tasks import certify_and_publish, work_under_lease


@pytest.fixture
def trust(services, tmp_path) -> Path:
    """The issuer's trust.json, as given out of band."""
    path = tmp_path / "given" / "trust.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(services.keyring.trust())
    return path


def folder_of(api, services, number: int = 1) -> Path:
    """A version's release folder."""
    return services.storage.release(api.get(f"/v1/models/tiny/versions/{number}").json()["digest"])


# Receipts.


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
    found = verify_record(receipt, b"the second", certificate, trust)
    assert (found.record, found.ref, found.verdict, found.overall) == (1, request["ref"], "FAIL", "FAIL")
    with pytest.raises(VerificationError) as caught:
        verify_record(receipt, b"the second ", certificate, trust)
    assert caught.value.code == ExitCode.NOT_IN_REQUEST
    statement = json.loads(base64.b64decode(json.loads(certificate.read_bytes())["payload"]))
    assert "model.sig" not in {s["name"] for s in statement["subject"]}  # what failed is not signed for release


def test_texts_of_a_purged_request_can_be_tested_again(api, services, model):
    """With the nonces of the receipt: the new request's record names the old one; others do not do."""
    first = published(api, services, "a record")
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    (opening,) = first["receipt"]["records"]
    good = {"ref": first["ref"], "nonces": [opening["nonce"]]}
    for changes in (
        {"records": [{"text": "a record "}]}, {"resubmits": {**good, "nonces": ["0" * 64]}},
        {"resubmits": {**good, "ref": "0" * 32}}, {"resubmits": {**good, "nonces": [*good["nonces"], "0" * 64]}},
        {"model": "other"},
    ):  # fmt: skip
        body = {"model": "tiny", "records": [{"text": "a record"}], "resubmits": good, **changes}
        answer = api.post(REQUESTS, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "resubmits"
    for malformed in ({**good, "ref": "x"}, {**good, "nonces": ["x"]}, {**good, "nonces": []}, {"ref": first["ref"]}):
        answer = api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a record"}], "resubmits": malformed})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"].startswith("resubmits")
    again = submit(api, resubmits=good)
    assert again["ref"] != first["ref"]
    publish_what_waits(services)
    (line,) = verify(folder_of(api, services, 2)).statement["predicate"]["requests"]
    assert (line["ref"], line["supplements"]) == (again["ref"], first["ref"])
    with services.db.reading() as session:
        entries = [json.loads(entry) for entry in session.scalars(select(AuditEntry.entry))]
    assert [e.get("supplements") for e in entries if e["kind"] == "request.accepted"] == [None, first["ref"]]
    with services.db.reading() as session:  # what is left of the purged one opens nothing
        row = session.scalar(select(DeletionRequest).where(DeletionRequest.ref == first["ref"]))
    assert row.wrapped_key is None
    assert commit(bytes.fromhex(opening["nonce"]), b"a record").hex() == opening["commitment"]


# Who is told what.


@pytest.fixture
def as_(api, key_of):
    """GET with a key of these scopes."""

    def get(path: str, *scopes: str):
        return api.get(path, headers={"Authorization": f"Bearer {key_of(*scopes)}"})

    return get


@pytest.mark.parametrize(("requests_", "submitters"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_means_of_few_submitters_are_shown_to_auditors_alone(api, services, model, as_, key_of, requests_, submitters):
    """In jobs, their history and events, and versions. Whoever submitted two of three could subtract its own."""
    keys = [key_of("submit") for _ in range(submitters)]
    for i in range(requests_):
        submit(api, headers={"Authorization": f"Bearer {keys[i % submitters]}"})
    job_id = batch_requests(services, only_model(services))
    members = range(requests_)
    report = {**REPORT, "verdicts": {str(i): "PASS" for i in members}, "memorised": list(members)}
    fence = claim(services, job_id)
    store_thresholds(services, job_id, fence, baseline(report))
    epoch = {
        "epoch": 1, "el": 0.123, "ma": 0.456, "loss": 0.789, "forget_loss": 0.777, "retain_loss": 2.0, "met": False,
        "el_limit": 0.0, "ma_limit": 0.4, "strength": 0.611, "perplexity": 9.0, "seconds": 1.0,
    }  # fmt: skip
    store_epoch(services, job_id, fence, epoch)
    expire_and_certify(services, job_id, report)
    places = [f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/history", f"/v1/jobs/{job_id}/events", "/v1/jobs"]
    versions = ["/v1/models/tiny/versions/1", "/v1/models/tiny/versions"]
    for place in places + versions:
        exact = as_(place, "read", "audit").text
        assert as_(place, "admin").text == exact
        assert ("0.456" in exact) == (place in places)
        hidden = as_(place, "read", "submit").text
        about = ("0.123", "0.456", "0.789", "0.777", "0.611", '"ma": 0.95', '"ma":0.95', '"ma": 0.3', '"ma":0.3}')
        for number in about:
            assert (number in hidden) == (number in exact and submitters == 3), (place, number)
        assert "0.4" in hidden or "history" in place  # limits are of held-out text


def expire_and_certify(services, job_id, report) -> None:
    """Take the job to its version."""
    expire(services, job_id)
    to_certify(services, job_id, report)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)


def test_downloads_are_registered_and_superseded_versions_announced(api, services, model, key_of):
    """Once a key and version, by model files alone; the register is for auditors, the feed for whoever reads."""
    published(api, services, "a record")
    published(api, services, "another")
    secret = key_of("download", "read")
    user = {"Authorization": f"Bearer {secret}"}
    base = "/v1/models/tiny/versions/1"
    for path in ("trust.json", "model.sig"):
        api.get(f"{base}/files/{path}", headers=user)
    assert api.get(f"{base}/downloads").json()["items"] == []
    for _ in range(2):
        api.get(f"{base}/files/model/config.json", headers=user)
    api.head(f"{base}/files/model/config.json")
    (entry,) = api.get(f"{base}/downloads").json()["items"]
    assert entry["name"] == "test"
    assert api.get("/v1/models/tiny/versions/2/downloads").json()["items"] == []
    assert api.get(f"{base}/downloads", headers=user).status_code == 403
    assert api.get(f"{base}/downloads", headers={"Authorization": f"Bearer {key_of('audit')}"}).json()["items"] == [
        entry
    ]
    feed = api.get("/v1/models/tiny/supersedes", headers=user).json()
    assert [(i["version"], i["superseded_by"]) for i in feed["items"]] == [(0, 1), (1, 2)]
    certificate = api.get("/v1/models/tiny/versions/2/certificate")
    assert feed["items"][1]["certificate"] == certificate.headers["etag"].strip('"')
    assert [i["version"] for i in api.get("/v1/models/tiny/supersedes?after=1").json()["items"]] == [1]
    assert api.get("/v1/models/tiny/supersedes?limit=1").json()["next_cursor"] == "1"
    assert api.get("/v1/models/nope/supersedes").status_code == 404


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


# Keys.


@pytest.fixture
def keys(services, tmp_path):
    """Run `unlearnd keys ...` as an operator."""
    settings = services.settings
    environment = {
        **os.environ, "UNLEARND_DATABASE_URL": settings.database_url, "UNLEARND_BROKER_URL": settings.broker_url,
        "UNLEARND_STORAGE_DIR": str(settings.storage_dir), "UNLEARND_KEYS_DIR": str(settings.keys_dir),
    }  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "service.cli", "keys", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_keys_are_rotated_and_revoked_while_the_service_runs(api, services, model, keys, tmp_path):
    """Old releases count after rotation and not after revocation; new ones are signed by the new key; all is logged."""
    published(api, services, "a record")
    old = {role: services.keyring.path(role).read_bytes() for role in ("certificate", "release", "log", "receipt")}
    for role, pem in old.items():
        done = keys("rotate", role)
        assert done.returncode == 0, done.stderr
        assert re.search(r"[0-9a-f]{64}", done.stderr)
        assert services.keyring.path(role).read_bytes() != pem
        assert services.keyring.path(role).stat().st_mode & 0o077 == 0
    published(api, services, "another")
    trust = tmp_path / "trust.json"

    def verdicts() -> list[int]:
        trust.write_bytes(api.get("/v1/log/trust").content)
        found = []
        for number in (1, 2):
            try:
                verify(folder_of(api, services, number), trust)
                found.append(0)
            except VerificationError as error:
                found.append(int(error.code))
        return found

    assert verdicts() == [0, 0]
    shown = keys("trust")
    assert hashlib.sha256(shown.stdout.encode()).hexdigest() in shown.stderr
    listed = json.loads(shown.stdout)["keys"]
    assert sorted(k["role"] for k in listed) == sorted([*old, *old])
    (retired,) = [k["keyid"] for k in listed if k["role"] == "certificate" and k.get("retired_at")]
    assert keys("distrust", retired).returncode == 0
    assert verdicts() == [ExitCode.UNTRUSTED_KEY, 0]
    (current,) = [k["keyid"] for k in listed if k["role"] == "certificate" and not k.get("retired_at")]
    assert keys("distrust", current).returncode == 0
    published(api, services, "a third")
    assert verdicts() == [ExitCode.UNTRUSTED_KEY] * 2
    verify(folder_of(api, services, 3), trust)
    with services.db.reading() as session:
        kinds = [json.loads(e)["kind"] for e in session.scalars(select(AuditEntry.entry))]
    assert (kinds.count("key.rotated"), kinds.count("key.revoked")) == (4, 2)
    for wrong in (("rotate", "kek"), ("distrust", "0" * 64)):
        assert keys(*wrong).returncode == 2


def test_a_log_key_that_was_replaced_signs_the_same_log_again(api, services, model, keys):
    """Nothing new happened, but the old signature may count no more: the newest checkpoint is signed by today's key."""
    submit(api)
    leaves, note = services.log.sign()
    assert keys("rotate", "log").returncode == 0
    again, newer = services.log.sign()
    assert again[: len(leaves)] == leaves
    assert newer != note
    assert services.log.sign() == (again, newer)


@pytest.mark.parametrize("when", ["before certifying", "before publishing"])
@pytest.mark.parametrize("role", ["certificate", "release", "log"])
def test_a_key_that_is_replaced_while_a_job_waits(api, services, model, when, role, tmp_path):
    """The attempt may fail, the next one certifies again: the version comes, and verifies by its own trust and ours."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    to_certify(services, job_id)
    if when == "before publishing":
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify_job(services, job_id, lease.fence)
        expire(services, job_id)
    (current,) = [k["keyid"] for k in json.loads(services.keyring.trust())["keys"] if k["role"] == role]
    services.keyring.revoke(current)
    for _ in range(2):
        age(services, not_before=None)
        work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)
    folder = folder_of(api, services)
    verify(folder)
    (tmp_path / "trust.json").write_bytes(services.keyring.trust())
    verify(folder, tmp_path / "trust.json")


def test_numbers_of_few_requests_go_with_their_texts(api, services, model):
    """After a purge no row tells an exact mean of a job of one: not the job, its events, or the version."""
    request = published(api, services, "a record")
    services.settings.custody_days = 0
    places = [f"/v1/jobs/{request['job_id']}", f"/v1/jobs/{request['job_id']}/events", "/v1/models/tiny/versions/1"]
    assert any(f'"ma":{REPORT["before"]["ma"]}' in api.get(p).text.replace(" ", "") for p in places)
    assert purge_due(services) == 1
    for place in places:
        for mean in (REPORT["before"]["ma"], REPORT["after"]["ma"]):
            assert f'"ma":{mean}' not in api.get(place).text.replace(" ", "")
    with services.db.reading() as session:
        rows = [session.get(Job, request["job_id"]), session.scalar(select(Version).where(Version.number == 1))]
        assert rows[0].report.findings.before is None
        assert {e.ma for e in rows[0].report.findings.trajectory} == {None}
        assert rows[1].metrics.after is None
    assert api.get("/v1/models/tiny/versions/1").json()["metrics"]["utility"]


def test_a_reused_key_of_a_purged_request_is_refused(api, services, model):
    """Whether the body is the same cannot be told any more; nothing is accepted and nothing pretended."""
    headers = {"Idempotency-Key": "k"}
    body = {"model": "tiny", "records": [{"text": "a record"}]}
    api.post(REQUESTS, json=body, headers=headers)
    publish_what_waits(services)
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    answer = api.post(REQUESTS, json=body, headers=headers)
    assert answer.status_code == 409
    assert "purged" in answer.json()["detail"]
    assert len(api.get(REQUESTS).json()["items"]) == 1


def test_without_a_receipt_key_nothing_is_accepted(api, services, model):
    """The receipt is made before the request is kept: it is promised with it."""
    services.keyring.path("receipt").unlink()
    with pytest.raises(FileNotFoundError):
        submit(api)
    assert api.get(REQUESTS).json()["items"] == []
    assert "keys" in [finding.check for finding in examine(services)]


def test_the_doctor_names_a_service_that_owns_the_log(services, model):
    """An upgraded server that still logs in as the owner."""
    own, services.db = services.db, Database(services.settings.owner_database_url, pool_size=1)
    assert "roles" in [finding.check for finding in examine(services)]
    services.db.close()
    services.db = own


def test_an_issuer_that_no_certificate_could_name_does_not_start(tmp_path):
    """It would fail every job after its whole run."""
    with pytest.raises(ValueError, match="e-mail"):
        Settings(issuer="dpo@example.org")


def test_a_release_as_one_archive(api, services, model, tmp_path):
    """A tar stream of exactly the folder's files, of the length that was announced; it verifies when unpacked."""
    published(api, services, "a record")
    answer = api.get("/v1/models/tiny/versions/1/archive.tar")
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "release", filter="data")
    verify(tmp_path / "release")
    assert len(api.get("/v1/models/tiny/versions/1/downloads").json()["items"]) == 1
    api.post("/v1/models/tiny/versions/1/withdraw", json={"reason": "faulty"})
    assert api.get("/v1/models/tiny/versions/1/archive.tar").status_code == 404
