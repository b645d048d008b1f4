"""The operator's side: the doctor, purging, and the restore drill of docs/guides/operations.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import func, select, update

from service import migrate
from service.audit.manifest import manifest, manifest_digest
from service.audit.verify import verify
from service.db import models, requests
from service.db.tables import DeletionRequest, Job, Outbox, Record
from service.doctor import examine
from service.domain.errors import NotFound
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.privacy.envelope import FileKeyWrapper
from service.privacy.records import open_records
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.upkeep.purge import purge_due, purge_restored
from tests.integration.conftest import REQUESTS, only_model, submit
from tests.integration.test_queue import REPORT, claim, to_certify
from tests.issuer import LINEAGE, Issuer
from worker.tasks import certify_and_publish, work_under_lease


def publish_what_waits(services) -> None:
    """Take the pending requests through a job to a version."""
    job_id = batch_requests(services, only_model(services))
    to_certify(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)


def published(api, services, text_: str) -> dict:
    """A request that ended in a version of its own, with its receipt."""
    request = submit(api, records=[{"text": text_}])
    publish_what_waits(services)
    return request | api.get(f"{REQUESTS}/{request['id']}").json()


# The doctor: each fault is planted in an installation that was found well.


def age(services, **values) -> None:
    """Set columns of all jobs."""
    with services.db.transaction() as session:
        session.execute(update(Job).values(**values))


def plant_schema(services, api):
    """A migration is missing."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")


def plant_durability(services, api):
    """Commits do not wait for the disk."""
    name = services.settings.database_url.split("/")[3].split("?")[0]
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    services.db.engine.dispose()


def plant_broker(services, api):
    """Nobody listens where the broker should be."""
    services.settings.broker_url = "redis://127.0.0.1:1/0"


def plant_storage(services, api):
    """Storage is not where it should be."""
    services.settings.storage_dir = services.settings.storage_dir / "elsewhere"


def plant_key_mode(services, api):
    """Others can read the key-encryption key."""
    (services.settings.keys_dir / "kek").chmod(0o644)


def plant_wrong_key(services, api):
    """Another key-encryption key than the one that was used."""
    submit(api)
    path = services.settings.keys_dir / "kek"
    path.write_bytes(os.urandom(32))
    services.wrapper = FileKeyWrapper(path)


def plant_version(services, api):
    """A published file is gone."""
    version = api.get("/v1/models/tiny/versions/0").json()
    (services.storage.release(version["digest"]) / version["files"][0]["path"]).unlink()


def plant_ledger(services, api):
    """Storage knows a version that the database has forgotten."""
    services.storage.add_published("tiny", 1, "0" * 64)


def plant_corpus(services, api):
    """A retain text is gone."""
    with services.db.transaction() as session:
        digest = models.by_name(session, "tiny").retain["sha256"]
    services.storage.reference_texts(digest).unlink()


def plant_lease(services, api):
    """A worker died and none came after it."""
    submit(api)
    assert claim(services, batch_requests(services, only_model(services)))
    age(services, lease_expires_at=func.now() - timedelta(hours=1))


def plant_no_worker(services, api):
    """A job was made long ago and no compute worker ever took it."""
    submit(api)
    batch_requests(services, only_model(services))
    age(services, created_at=func.now() - timedelta(hours=1))


def plant_given_up(services, api):
    """A job was quarantined."""
    submit(api)
    batch_requests(services, only_model(services))
    age(services, stage="quarantined", reason="child_killed")
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(status="failed"))


def plant_batching(services, api):
    """No control worker runs."""
    submit(api)
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(accepted_at=func.now() - timedelta(hours=1)))


def plant_deadline(services, api):
    """A request is late."""
    submit(api)
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(due_at=func.now() - timedelta(days=1)))


def plant_callback(services, api):
    """A callback was tried ten times in vain."""
    request = submit(api, callback_url="http://127.0.0.1:1/")
    api.delete(f"{REQUESTS}/{request['id']}")
    plant_callback_given_up(services)


def plant_log(services, api):
    """Somebody changed the log behind its trigger."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute("UPDATE audit_entries SET entry = '{}' WHERE index = 0")


FAULTS = {
    "schema": plant_schema, "durability": plant_durability, "broker": plant_broker, "storage": plant_storage,
    "keys": plant_key_mode, "keys (another)": plant_wrong_key, "versions": plant_version, "ledger": plant_ledger,
    "corpora": plant_corpus, "leases": plant_lease, "leases (never)": plant_no_worker, "jobs": plant_given_up,
    "batching": plant_batching, "deadlines": plant_deadline, "callbacks": plant_callback, "log": plant_log,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_finds_what_is_planted(api, services, model, fault):
    """Well before; afterwards this check and no other speaks, with a remedy and without a text of a request."""
    assert examine(services) == []
    FAULTS[fault](services, api)
    found = examine(services)
    assert {f.check for f in found} == {fault.split(" ")[0]}, found
    assert all(f.problem and f.remedy and "a record" not in f.problem for f in found)


def test_the_doctor_compares_clocks(services):
    """This host's clock against the database's, both ways."""
    for off in (timedelta(minutes=-5), timedelta(minutes=5)):
        assert [f.check for f in examine(services, now=datetime.now(UTC) + off)] == ["clocks"]


def test_the_doctor_says_when_the_database_is_away(services):
    """One finding, not a traceback."""
    services.db = type(services.db)("postgresql://postgres@/none?host=/nowhere")
    assert [f.check for f in examine(services)] == ["database"]


def test_the_doctors_command(services, model):
    """Exit code 1 and a line a finding; 0 and a word if all is well."""
    settings = services.settings
    environment = {
        **os.environ, "UNLEARND_DATABASE_URL": settings.database_url, "UNLEARND_BROKER_URL": settings.broker_url,
        "UNLEARND_STORAGE_DIR": str(settings.storage_dir), "UNLEARND_KEYS_DIR": str(settings.keys_dir),
    }  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "doctor"]
    well = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (well.returncode, well.stdout) == (0, "nothing wrong was found\n"), well.stderr
    (settings.keys_dir / "kek").chmod(0o640)
    ill = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert ill.returncode == 1
    assert '"check": "keys"' in ill.stdout
    (settings.keys_dir / "kek").unlink()
    elsewhere = {**environment, "UNLEARND_STORAGE_DIR": str(settings.storage_dir / "elsewhere")}
    ill = subprocess.run([*command, "--json"], env=elsewhere, capture_output=True, text=True, check=False)
    assert {"keys", "storage"} <= {f["check"] for f in json.loads(ill.stdout)}, ill.stderr
    assert not (settings.storage_dir / "elsewhere").exists()  # it looks, and changes nothing


# Purging.


def test_purging_destroys_the_key_and_what_it_sealed(api, services, model):
    """After the window, not before; never while it failed or its callback waits; the ledger has it."""
    request = published(api, services, "a record")
    failed = submit(api)
    with services.db.transaction() as session:
        kept = session.scalar(select(DeletionRequest.wrapped_key).where(DeletionRequest.id == request["id"]))
        session.execute(
            update(DeletionRequest)
            .where(DeletionRequest.id == failed["id"])
            .values(status="failed", finished_at=func.now() - timedelta(days=999))
        )
    assert purge_due(services) == 0
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    assert purge_due(services) == 0
    with services.db.transaction() as session:
        row = requests.by_id(session, request["id"])
        assert row.wrapped_key is None
        assert kept is not None
        assert session.scalar(select(func.count()).where(Record.request_id == request["id"])) == 0
        assert requests.by_id(session, failed["id"]).wrapped_key is not None
    assert [str(i) for i in services.storage.purged()] == [request["id"]]
    with pytest.raises(NotFound):
        open_records(services.wrapper, row)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["status"] == "completed"


def test_a_callback_that_waits_keeps_the_texts_and_one_given_up_does_not(api, services, model):
    """Its address is sealed with the same key."""
    services.settings.custody_days = 0
    request = submit(api, callback_url="http://127.0.0.1:1/")
    api.delete(f"{REQUESTS}/{request['id']}")
    assert purge_due(services) == 0
    plant_callback_given_up(services)
    assert purge_due(services) == 1


def plant_callback_given_up(services) -> None:
    """It was tried ten times in vain."""
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(next_at=None))


def test_a_crash_while_the_ledger_is_written_stops_nothing(api, services, model):
    """What it leaves is no entry, and is written over."""
    request = published(api, services, "a record")
    folder = services.settings.storage_dir / "ledger" / "purged"
    (folder / f".{request['id']}").write_text("")
    assert services.storage.purged() == []
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    assert [str(i) for i in services.storage.purged()] == [request["id"]]


def test_the_ledger_may_be_longer_than_a_statement_has_parameters(services):
    """PostgreSQL takes 65,535 of them."""
    with services.db.reading() as session:
        assert requests.unpurged(session, [uuid4() for _ in range(70_000)]) == []


def test_a_purged_request_that_a_backup_takes_for_pending_holds_nobody_up(api, services, model):
    """It had ended, or it would not have been purged: it ends, and others are batched without it."""
    gone, other = submit(api), submit(api)
    services.storage.add_purged(UUID(gone["id"]))
    assert purge_restored(services) == [UUID(gone["id"])]
    found = api.get(f"{REQUESTS}/{gone['id']}").json()
    assert (found["status"], found["reason"]) == ("failed", "restored")
    refused = api.post(f"{REQUESTS}/{gone['id']}/retry")
    assert (refused.status_code, "purged" in refused.json()["detail"]) == (409, True)  # it would be pending for ever
    assert batch_requests(services, only_model(services))
    assert api.get(f"{REQUESTS}/{other['id']}").json()["status"] == "batched"


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


# The restore drill.


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
    assert latest["metrics"]["utility"] == second["metrics"]["utility"]
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


def test_without_reconciling_nothing_is_published_twice(api, services, model, run):
    """A job of before the restore runs into the version that storage knows: it is taken up, the job's request ends as
    its certificate says, and one that came later is back in line."""
    first = submit(api, records=[{"text": "the first record"}])
    run("backup")
    publish_what_waits(services)
    digest = api.get("/v1/models/tiny/versions/1").json()["digest"]
    folders = services.storage.releases()
    run("restore-storage")
    run("restore-database")
    migrate.upgrade(services.settings.owner_database_url)  # and then everything is started, without the rest
    late = submit(api, records=[{"text": "one that came after the restore"}])
    job_id = batch_requests(services, only_model(services))
    report = {**REPORT, "verdicts": {"0": "PASS", "1": "PASS"}, "memorised": [0, 1]}
    to_certify(services, job_id, report)
    work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)  # as a control worker does
    assert services.storage.releases() == folders
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
