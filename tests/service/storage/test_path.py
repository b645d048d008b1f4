"""The path of a request over a bucket, with every part on a machine of its own, and the log's memory beside it."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest
from fastapi.testclient import TestClient

from service import bucket
from service.audit.checkpoint import read_checkpoint
from service.audit.verify import verify
from service.bootstrap import open_storage
from service.bucket import Bucket
from service.client.http import Client
from service.db import log_entries
from service.db.tables import Job
from service.doctor import examine
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import LogBusy
from service.lease import hold_job
from service.main import create_app
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.compute_input import check_files, compute_input
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_stage, store_thresholds
from service.steps.path.verify import store_report
from service.steps.upkeep.scrub import scrub_next
from service.steps.upkeep.sweep import collect_garbage
from tests.service.conftest import only_model, registration, submit
from tests.service.jobs import REPORT, baseline, child_report, claim, file_digests, make_candidate
from tests.service.served import server_process
from tests.service.storage.test_storage import finish
from worker.steps.run import run_job
from worker.tasks import work_under_lease


@pytest.fixture
def services_on(services, bucket_url, tmp_path):
    """The services as a machine of that name has them."""

    def start(name: str):
        settings = services.settings.model_copy(update={"storage_url": bucket_url, "storage_dir": tmp_path / name})
        return replace(services, settings=settings, storage=open_storage(settings))

    return start


@pytest.fixture
def web(services_on, new_key):
    """A client of the API on its machine."""
    key = {"Authorization": f"Bearer {new_key('admin', 'audit')}"}
    with TestClient(create_app(services_on("api")), headers=key, client=("127.0.0.1", 50_000)) as client:
        yield client


def test_a_request_is_fulfilled_by_parts_that_share_a_bucket(web, base, services_on, services):
    """Registered on one machine, computed on another, certified and published on two more, and verified as served."""
    assert web.post("/v1/models", json=registration(base)).status_code == 201
    submit(web)
    job_id = batch_requests(services_on("batch"), only_model(services))
    compute = services_on("compute")
    fence = claim(compute, job_id)
    check_files(compute, job_id)
    inputs = compute_input(compute, job_id, fence)
    assert str(services_on("compute").settings.storage_dir) in inputs.parent
    files = make_candidate(compute, job_id, fence)
    store_thresholds(compute, job_id, fence, baseline(REPORT))
    for stage in (Stage.UNLEARN, Stage.MERGE, Stage.VERIFY):
        store_stage(compute, job_id, fence, stage)
    folder = compute.storage.work(job_id, fence)
    finish(folder, {f"candidate/{path}": (folder / "candidate" / path).read_bytes() for path in files})
    compute.storage.keep_work(job_id, fence)
    store_report(compute, job_id, fence, child_report({**REPORT, "files": files}))
    compute.storage.leave_work(job_id, fence)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services_on("control-1"), job_id, fence)
    publish_version(services_on("control-2"), job_id, fence)
    collect_garbage(services_on("control-1"))
    _check_served(web, services_on)
    fresh = services_on("fresh")
    assert scrub_next(fresh)
    assert fresh.storage.jobs_present() == []
    assert fresh.storage.published() == {("tiny", 1): web.get("/v1/models/tiny/versions/1").json()["digest"]}
    assert reconcile(fresh).adopted == []
    assert web.get("/v1/log/checkpoint").text == fresh.log.checkpoint()


def _check_served(web, services_on) -> None:
    """Check version 1 as an outsider would, and ranges of a file."""
    archive = web.get("/v1/models/tiny/versions/1/archive.tar").content
    target = services_on("auditor").settings.storage_dir / "release"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    assert verify(target).statement["predicate"]["lineage"]["version"] == 1
    assert web.get("/v1/models/tiny/versions/1/certificate?as=html").status_code == 200
    weights = web.get("/v1/models/tiny/versions/1/files/model/model.safetensors", headers={"Range": "bytes=8-99"})
    assert weights.status_code == 206
    whole = (target / "model" / "model.safetensors").read_bytes()
    assert weights.content == whole[8:100]
    assert weights.headers["Content-Range"] == f"bytes 8-99/{len(whole)}"
    url = "/v1/models/tiny/versions/1/files/model/model.safetensors"
    assert web.get(url, headers={"Range": "bytes=-5"}).content == whole[-5:]
    assert web.get(url, headers={"Range": "bytes=8-", "If-Range": '"another"'}).content == whole
    assert web.get(url, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert web.get(url).content == whole


@pytest.fixture
def presigned(services, services_on, base):
    """A server whose bucket hands files out itself, with a registered model; its URL."""
    settings = {"storage_url": services_on("api").settings.storage_url, "presign_seconds": 60}
    with server_process(services, **settings) as server:
        yield server.url


def test_a_bucket_hands_a_file_out_itself(presigned, base, new_key, services, s3, tmp_path):
    """The API redirects those who may have it, and notes the download; a HEAD says what they will get."""
    secret = new_key("admin", "download", "audit")
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=presigned, headers=headers, trust_env=False, timeout=60) as web:
        assert web.post("/v1/models", json=registration(base)).status_code == 201
        for url in ("/v1/models/tiny/versions/0/files/model/config.json", "/hub/any/tiny/resolve/main/config.json"):
            answer, head = web.get(url), web.head(url)
            assert (answer.status_code, head.status_code) == (302, 200)
            assert answer.headers["Location"].startswith(s3["AWS_ENDPOINT_URL"])
            expected = (base / "model" / "config.json").read_bytes()
            assert httpx.get(answer.headers["Location"], trust_env=False, timeout=60).content == expected
            assert int(head.headers["Content-Length"]) == len(expected)
            assert answer.headers["ETag"] == head.headers["ETag"]
            assert web.get(url, headers={"Authorization": "Bearer none"}).status_code == 401
        assert len(web.get("/v1/models/tiny/versions/0/downloads").json()["items"]) == 1
    with Client(presigned, secret) as client:
        client.download("tiny", "0", tmp_path / "release")
    assert file_digests(tmp_path / "release" / "model") == file_digests(base / "model")


def test_a_model_loads_as_from_the_hub_through_the_bucket(presigned, base, new_key, tmp_path):
    """The hub's own client follows the redirection."""
    key = new_key("admin", "download")
    with Client(presigned, key) as client:
        client.call("POST", "/v1/models", json=registration(base))
    command = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download('any/tiny'))"
    variables = {"HF_ENDPOINT": f"{presigned}/hub", "HF_TOKEN": key, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", command], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = Path(done.stdout.strip())
    assert {path.name for path in loaded.iterdir()} == {path.name for path in (base / "model").iterdir()}
    assert all((loaded / path.name).read_bytes() == path.read_bytes() for path in (base / "model").iterdir())


def append(services, count: int) -> None:
    """Append entries to the log."""
    with services.db.transaction() as session:
        for number in range(count):
            log_entries.append(session, "log.begun_anew", previous=str(number))


def test_one_of_those_who_sign_at_once_wins(services_on, services):
    """The other is told to come again, and what it wrote harms nobody."""
    keepers = [services_on(name).log for name in ("one", "two")]
    append(services, 300)
    keepers[0].sign()
    append(services, 300)
    with keepers[0]._memory.held():
        keepers[1].sign()
        with pytest.raises(LogBusy):
            keepers[0]._memory.write_note("mine")
    append(services, 1)
    results = []
    barrier = threading.Barrier(2)

    def sign(keeper):
        barrier.wait(10)
        try:
            results.append(keeper.sign())
        except LogBusy:
            results.append(None)

    threads = [threading.Thread(target=sign, args=(keeper,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(results)
    size = read_checkpoint(keepers[0].sign()).size
    with services.db.reading() as session:
        assert size == log_entries.size(session)
    assert keepers[1].missing_entries(compare_all=True) == (size, [])
    assert keepers[1].tile("0/000")
    assert keepers[1].prove(size - 1)


def test_a_log_that_ended_is_kept_beside_the_new_one(services_on, services):
    """With the tiles and the checkpoint that it had."""
    keeper = services_on("one").log
    append(services, 3)
    signed = keeper.sign()
    keeper.start_new_log()
    assert keeper.origin.endswith("/log/2")
    assert keeper.checkpoint() is None
    assert keeper._memory.read("ended-1/checkpoint").decode() == signed
    assert read_checkpoint(services_on("two").log.sign()).size == read_checkpoint(keeper.sign()).size


def test_a_database_that_differs_from_the_signed_log_is_seen(services_on, services):
    """By any machine."""
    append(services, 3)
    services_on("one").log.sign()
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        owner.execute("UPDATE audit_entries SET leaf_hash = sha256('x') WHERE index = 0")
    with pytest.raises(LogForked):
        services_on("two").log.missing_entries(compare_all=True)


@pytest.fixture
def away(monkeypatch):
    """Nobody answers at the bucket's address any more, once it is called."""

    monkeypatch.setitem(bucket.RETRIES, "max_retries", 0)
    kept = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    dead = Bucket("s3://unlearnd/x")._store
    monkeypatch.setenv("AWS_ENDPOINT_URL", kept)
    return lambda: monkeypatch.setattr(Bucket, "_store", property(lambda _: dead))


def test_a_bucket_that_is_away_costs_files_and_nothing_else(web, base, away, tmp_path, services_on, services):
    """Files are a 503 that says when to come again; requests are accepted; a job is handed back, with its attempt."""
    assert web.post("/v1/models", json=registration(base)).status_code == 201
    for copy in (tmp_path / "api" / "copies" / "versions").iterdir():
        shutil.rmtree(copy)
    submit(web)
    job_id = batch_requests(services_on("batch"), only_model(services))
    away()
    for path in ("files/model/config.json", "archive.tar"):
        answer = web.get(f"/v1/models/tiny/versions/0/{path}")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"]
    assert submit(web)["status"] == "pending"
    compute = services_on("compute")
    assert work_under_lease(compute, job_id, COMPUTE_STAGES, run_job)
    with services.db.reading() as session:
        job = session.get(Job, job_id)
    assert (job.owner, job.attempts, job.losses, job.stage) == (None, 0, 0, "queued")
    assert list((tmp_path / "compute" / "copies" / "work").iterdir()) == []
    assert "storage" in {finding.check for finding in examine(compute)}


def test_the_doctor_looks_whether_conditions_hold(services_on, monkeypatch):
    """A server that writes over what is there would publish twice."""
    machine = services_on("one")
    assert "storage" not in {finding.check for finding in examine(machine)}

    def careless(self, key, content):
        self.put(key, content)
        return True

    monkeypatch.setattr(Bucket, "put_new", careless)
    (finding,) = [finding for finding in examine(machine) if finding.check == "storage"]
    assert "although" in finding.problem


def test_moving_bytes_are_steps_of_a_job(web, base, services_on, services):
    """A long transfer is no job that stands still."""
    assert web.post("/v1/models", json=registration(base)).status_code == 201
    submit(web)
    job_id = batch_requests(services_on("batch"), only_model(services))
    compute = services_on("compute")
    with hold_job(compute, job_id, COMPUTE_STAGES) as lease:
        check_files(compute, job_id)
        assert lease.steps > 5
