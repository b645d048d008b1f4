"""The path of a request over a bucket, with every part on a machine of its own, and the log's memory beside it."""

import io
import shutil
import tarfile
import threading
from dataclasses import replace

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.audit.checkpoint import read_checkpoint
from service.audit.verify import verify
from service.bootstrap import open_storage
from service.bucket import Bucket
from service.db import log_entries
from service.domain.errors import StorageAway
from service.domain.states import CONTROL_STAGES, Stage
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import LogBusy
from service.main import create_app
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import check_files, compute_input, store_stage, store_thresholds
from service.steps.path.verify import store_report
from service.steps.upkeep.scrub import scrub_next
from service.steps.upkeep.sweep import collect_garbage
from tests.service.conftest import only_model, registration, submit
from tests.service.jobs import REPORT, baseline, child_report, claim, make_candidate
from tests.service.storage.test_storage import finish


@pytest.fixture
def machine(services, bucket_url, tmp_path):
    """The services as a machine of that name has them."""

    def start(name: str):
        settings = services.settings.model_copy(update={"storage_url": bucket_url, "storage_dir": tmp_path / name})
        return replace(services, settings=settings, storage=open_storage(settings))

    return start


@pytest.fixture
def web(machine, new_key):
    """A client of the API on its machine."""
    key = {"Authorization": f"Bearer {new_key('admin', 'audit')}"}
    with TestClient(create_app(machine("api")), headers=key, client=("127.0.0.1", 50_000)) as client:
        yield client


def test_a_request_is_fulfilled_by_parts_that_share_a_bucket(web, base, machine, services):
    """Registered on one machine, computed on another, certified and published on two more, and verified as served."""
    assert web.post("/v1/models", json=registration(base)).status_code == 201
    submit(web)
    job_id = batch_requests(machine("batch"), only_model(services))
    compute = machine("compute")
    fence = claim(compute, job_id)
    check_files(compute, job_id)
    inputs = compute_input(compute, job_id, fence)
    assert str(machine("compute").settings.storage_dir) in inputs.parent
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
    certify_job(machine("control-1"), job_id, fence)
    publish_version(machine("control-2"), job_id, fence)
    collect_garbage(machine("control-1"))
    archive = web.get("/v1/models/tiny/versions/1/archive.tar").content
    target = machine("auditor").settings.storage_dir / "release"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    assert verify(target).statement["predicate"]["lineage"]["version"] == 1
    assert web.get("/v1/models/tiny/versions/1/certificate?as=html").status_code == 200
    weights = web.get("/v1/models/tiny/versions/1/files/model/model.safetensors", headers={"Range": "bytes=8-99"})
    assert weights.status_code == 206
    assert weights.content == (target / "model" / "model.safetensors").read_bytes()[8:100]
    fresh = machine("fresh")
    assert scrub_next(fresh)
    assert fresh.storage.jobs_present() == []
    assert fresh.storage.published() == {("tiny", 1): web.get("/v1/models/tiny/versions/1").json()["digest"]}
    assert reconcile(fresh).adopted == []
    assert web.get("/v1/log/checkpoint").text == fresh.log.checkpoint()


def test_a_bucket_hands_a_file_out_itself(services, bucket_url, base, new_key, tmp_path):
    """The API redirects those who may have it; a HEAD says what they will get."""
    update = {"storage_url": bucket_url, "storage_dir": tmp_path / "api", "presign_seconds": 60}
    settings = services.settings.model_copy(update=update)
    api = create_app(replace(services, settings=settings, storage=open_storage(settings)))
    key = {"Authorization": f"Bearer {new_key('admin')}"}
    with TestClient(api, headers=key, client=("127.0.0.1", 50_000), follow_redirects=False) as web:
        assert web.post("/v1/models", json=registration(base)).status_code == 201
        for url in ("/v1/models/tiny/versions/0/files/model/config.json", "/hub/any/tiny/resolve/main/config.json"):
            answer, head = web.get(url), web.head(url)
            assert (answer.status_code, head.status_code) == (302, 200)
            assert answer.headers["Location"].startswith(bucket_url.replace("s3://", "http://127.0.0.1")[:16])
            assert int(head.headers["Content-Length"]) == (base / "model" / "config.json").stat().st_size
            assert answer.headers["ETag"] == head.headers["ETag"]
            stranger = web.get(url, headers={"Authorization": "Bearer none"})
            assert stranger.status_code == 401


def append(services, count: int) -> None:
    """Append entries to the log."""
    with services.db.transaction() as session:
        for number in range(count):
            log_entries.append(session, "log.begun_anew", previous=str(number))


def test_one_of_those_who_sign_at_once_wins(machine, services):
    """The other is told to come again, and what it wrote harms nobody."""
    keepers = [machine(name).log for name in ("one", "two")]
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
    assert size == 601 + log_size_before(services)
    assert keepers[1].missing_entries(compare_all=True) == (size, [])
    assert keepers[1].tile("0/000")
    assert keepers[1].prove(size - 1)


def log_size_before(services) -> int:
    """What the log of a new database has."""
    with services.db.reading() as session:
        return log_entries.size(session) - 601


def test_a_log_that_ended_is_kept_beside_the_new_one(machine, services):
    """With the tiles and the checkpoint that it had."""
    keeper = machine("one").log
    append(services, 3)
    signed = keeper.sign()
    keeper.start_new_log()
    assert keeper.origin.endswith("/log/2")
    assert keeper.checkpoint() is None
    assert keeper._memory.read("ended-1/checkpoint").decode() == signed
    assert read_checkpoint(machine("two").log.sign()).size == read_checkpoint(keeper.sign()).size


def test_a_database_that_differs_from_the_signed_log_is_seen(machine, services):
    """By any machine."""
    append(services, 3)
    machine("one").log.sign()
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        owner.execute("UPDATE audit_entries SET leaf_hash = sha256('x') WHERE index = 0")
    with pytest.raises(LogForked):
        machine("two").log.missing_entries(compare_all=True)


@pytest.mark.parametrize("path", ["files/model/config.json", "archive.tar"])
def test_a_server_that_is_away_is_a_503(web, base, monkeypatch, path, tmp_path):
    """Not an error of ours, nor a missing file; and it says when to come again."""
    assert web.post("/v1/models", json=registration(base)).status_code == 201
    for copy in (tmp_path / "api" / "versions").iterdir():
        shutil.rmtree(copy)

    def away(*_, **__):
        raise StorageAway(5, "the object storage does not serve: GenericError")

    for name in ("get", "objects", "fetch", "parts", "has"):
        monkeypatch.setattr(Bucket, name, away)
    answer = web.get(f"/v1/models/tiny/versions/0/{path}")
    assert answer.status_code == 503
    assert answer.json()["code"] == "unavailable"
    assert answer.headers["Retry-After"]
