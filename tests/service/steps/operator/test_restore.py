"""The restore drill of docs/guides/operations.md."""

import re
import shutil

import pytest
from sqlalchemy import func, select

from service import migrate
from service.audit.manifest import manifest, manifest_digest
from service.audit.verify import verify
from service.db import requests
from service.db.tables import Record
from service.domain.disclosure import OF_NEIGHBOURS
from service.domain.states import CONTROL_STAGES
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.upkeep.purge import purge_due
from tests.issuer import LINEAGE, Issuer
from tests.service.conftest import REQUESTS, logged, only_model, submit
from tests.service.dumps import backup, restore
from tests.service.jobs import REPORT, publish_what_waits, published, to_certify
from worker.tasks import certify_and_publish, work_under_lease

pytestmark = pytest.mark.usefixtures("durable")  # a drill ends with the doctor


def test_storage_cannot_speak_for_the_service(api, services, model, tmp_path):
    """A folder that somebody else signed, put into storage with a ledger entry, is not taken up."""
    published(api, services, "a record")
    digest = api.get("/v1/models/tiny/versions/1").json()["digest"]
    forged = tmp_path / "forged"
    shutil.copytree(services.storage.release(digest), forged)
    (forged / "model" / "config.json").write_text('{"forged": true}')
    other = Issuer(tmp_path / "other")
    (forged / "trust.json").write_bytes(other.keyring.trust())
    other.keyring.sign_model(forged / "model", forged / "model.sig")
    verify(other.certify_folder(forged, lineage={**LINEAGE, "model": "tiny"}))
    name = manifest_digest(manifest(forged))
    shutil.copytree(forged, services.storage.release(name))
    services.storage.add_published("tiny", 2, name)
    services.storage.add_published("tiny", 3, digest)  # ours, but of another number
    done = reconcile(services)
    assert (done.adopted, done.unknown) == ([], ["tiny/2", "tiny/3"])
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 1


def test_the_restore_drill(api, services, model, run):
    """An older backup brings back no purged text and publishes nothing twice; what goes on goes on from the newest."""
    purged = published(api, services, "the first record")
    waiting = submit(api, records=[{"text": "the second record"}])
    run("backup")
    publish_what_waits(services)
    second = api.get("/v1/models/tiny/versions/2").json()
    services.settings.custody_days = 0
    assert purge_due(services) == 2
    run("restore-storage")  # nothing is lost there: what is newer stays
    run("restore-database")
    shown = run("restore")
    assert "taken up again: tiny/2" in shown
    assert "purged again: 2 requests" in shown
    assert re.search(r"entries of the log brought back: [1-9]", shown)
    assert "nothing wrong was found" in shown
    latest = api.get("/v1/models/tiny/versions/latest").json()
    assert (latest["version"], latest["digest"]) == (2, second["digest"])
    certified = {name: None if name in OF_NEIGHBOURS else n for name, n in second["metrics"]["utility"].items()}
    assert latest["metrics"]["utility"] == certified  # figures that no certificate states are lost
    assert [attack["passed"] for attack in latest["attacks"]] == [attack["passed"] for attack in second["attacks"]]
    again = api.get(f"{REQUESTS}/{waiting['id']}").json()
    assert (again["status"], again["verdict"], again["version"]) == ("completed", "PASS", 2)
    with services.db.transaction() as session:
        for request_id in (purged["id"], waiting["id"]):
            assert requests.by_id(session, request_id).wrapped_key is None
        assert session.scalar(select(func.count()).select_from(Record)) == 0
    third = published(api, services, "the third record")
    assert third["version"] == 3
    statement = verify(services.storage.release(api.get("/v1/models/tiny/versions/3").json()["digest"])).statement
    assert statement["predicate"]["lineage"]["parent_manifest"] == second["digest"]
    assert statement["predicate"]["lineage"]["parent_certificate"]


def test_a_job_that_has_lost_who_joined_it_is_stopped(api, services, model):
    """The log says that the request ends with the job, and the database does not know it. Both requests wait again."""
    first = submit(api)
    job_id = batch_requests(services, only_model(services))
    second = submit(api)
    copied = backup(services)
    batch_requests(services, only_model(services))
    services.log.sign()
    restore(services, copied)
    assert [api.get(f"{REQUESTS}/{request['id']}").json()["status"] for request in (first, second)] == ["pending"] * 2
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["stage"], job["reason"]) == ("quarantined", "restored")
    assert [entry["kind"] for entry in logged(services) if entry.get("job") == str(job_id)] == [
        "job.batched",
        "job.joined",
        "job.quarantined",
    ]


def test_without_reconciling_nothing_is_published_twice(api, services, model, run):
    """A job of before the restore runs into the version that storage knows: it is taken up, the job's request ends as
    its certificate says, and one that came later is back in line."""
    first = submit(api, records=[{"text": "the first record"}])
    run("backup")
    publish_what_waits(services)
    digest = api.get("/v1/models/tiny/versions/1").json()["digest"]
    releases = services.storage.releases().keys()
    run("restore-storage")
    run("restore-database")
    migrate.upgrade(services.settings.owner_database_url)  # and then everything is started, without the rest
    late = submit(api, records=[{"text": "one that came after the restore"}])
    job_id = batch_requests(services, only_model(services))
    report = {**REPORT, "verdicts": {"0": "PASS", "1": "PASS"}, "memorised": [0, 1]}
    to_certify(services, job_id, report)
    work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)  # as a control worker does
    assert services.storage.releases().keys() == releases
    assert reconcile(services).adopted == []  # it was done when the worker ran into it
    assert api.get("/v1/models/tiny/versions/latest").json()["digest"] == digest
    assert api.get(f"{REQUESTS}/{first['id']}").json()["version"] == 1
    assert api.get(f"{REQUESTS}/{late['id']}").json()["status"] == "pending"
    assert api.get(f"/v1/jobs/{job_id}").json()["reason"] == "restored"


def test_storage_comes_back_from_the_backup(api, services, model, run):
    """Lost as a whole: versions, corpora and ledger are there again, and nothing is wrong."""
    published(api, services, "the first record")
    run("backup")
    shutil.rmtree(services.settings.storage_dir)
    services.settings.storage_dir.mkdir()
    run("restore-storage")
    type(services.storage)(services.settings.storage_dir)  # working folders are made when a part starts
    run("restore-database")
    shown = run("restore")
    assert "nothing wrong was found" in shown
    version = api.get("/v1/models/tiny/versions/1").json()
    verify(services.storage.release(version["digest"]))
    assert published(api, services, "the second record")["version"] == 2
