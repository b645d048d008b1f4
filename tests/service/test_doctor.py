"""The doctor finds planted faults."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import func, update

from service.db import models
from service.db.session import Database
from service.db.tables import DeletionRequest, Outbox
from service.doctor import database, examine
from service.privacy.envelope import FileKeyWrapper
from service.privacy.epochs import EpochKeys
from service.steps.path.batch import batch_requests
from tests import status_door
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import age, claim, plant_callback_given_up
from tests.service.served import environment

pytestmark = pytest.mark.usefixtures("durable")


def test_the_doctor_names_a_service_that_owns_the_log(services, model):
    """An upgraded server that still logs in as the owner."""
    own, services.db = services.db, Database(services.settings.owner_database_url, pool_size=1)
    assert "roles" in [finding.check for finding in examine(services)]
    services.db.close()
    services.db = own


def plant_schema(services, api):
    """A migration is missing."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")


def plant_durability(services, api):
    """Commits do not wait for the disk."""
    set_for_database(services, "synchronous_commit = off")


def plant_isolation(services, api):
    """Transactions that meet are refused."""
    set_for_database(services, "default_transaction_isolation = serializable")


def set_for_database(services, setting: str) -> None:
    """A setting of all new sessions."""
    name = services.settings.database_url.split("/")[3].split("?")[0]
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET {setting}")
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


def plant_old_trust(services, api):
    """Nobody renewed trust.json."""
    path = services.settings.keys_dir / "trust.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"expires": "2026-01-01T00:00:00+00:00"}))


def plant_wrong_key(services, api):
    """Another key-encryption key than the one that was used."""
    submit(api)
    path = services.settings.keys_dir / "kek"
    path.write_bytes(os.urandom(32))
    services.wrapper = EpochKeys(FileKeyWrapper(path), services.settings.keys_dir / "epochs", 60, lambda _: None)


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
    with status_door.planting():
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
    request = submit(api, callback_url="http://127.0.0.1:65000/")
    api.delete(f"{REQUESTS}/{request['id']}")
    plant_callback_given_up(services)


def plant_late_callback(services, api):
    """Nobody has sent a callback for an hour."""
    request = submit(api, callback_url="http://127.0.0.1:65000/")
    api.delete(f"{REQUESTS}/{request['id']}")
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(next_at=func.now() - timedelta(hours=1)))


def plant_capacity(services, api):
    """A job took a day for one request, and three more are due in 24 hours."""
    submit(api)
    batch_requests(services, only_model(services))
    with status_door.planting():
        age(services, stage="done", started_at=func.now() - timedelta(days=1), finished_at=func.now())
        with services.db.transaction() as session:
            session.execute(update(DeletionRequest).values(status="completed", finished_at=func.now()))
    for _ in range(3):
        submit(api)
    with services.db.transaction() as session:
        tomorrow = func.now() + timedelta(days=1)
        session.execute(update(DeletionRequest).where(DeletionRequest.status == "pending").values(due_at=tomorrow))


def plant_log(services, api):
    """Somebody changed the log behind its trigger."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute("UPDATE audit_entries SET entry = '{}' WHERE index = 0")


FAULTS = {
    "schema": plant_schema, "durability": plant_durability, "broker": plant_broker, "storage": plant_storage,
    "keys": plant_key_mode, "keys (another)": plant_wrong_key, "versions": plant_version, "ledger": plant_ledger,
    "corpora": plant_corpus, "leases": plant_lease, "leases (never)": plant_no_worker, "jobs": plant_given_up,
    "trust": plant_old_trust, "batching": plant_batching, "deadlines": plant_deadline, "callbacks": plant_callback,
    "callbacks (late)": plant_late_callback, "durability (isolation)": plant_isolation, "capacity": plant_capacity,
    "log": plant_log,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_finds_what_is_planted(api, services, model, fault):
    """Well before; afterwards this check and no other speaks, with a remedy and without a text of a request."""
    assert examine(services) == []
    FAULTS[fault](services, api)
    findings = examine(services)
    assert {f.check for f in findings} == {fault.split(" ")[0]}, findings
    assert all(f.problem and f.remedy and "a record" not in f.problem for f in findings)


def test_the_doctor_looks_at_the_server(services, monkeypatch):
    """Connections that run out, and a journal that is kept for a standby that is away."""
    monkeypatch.setattr(database, "FULL", 0)
    assert [finding.check for finding in examine(services)] == ["connections"]
    monkeypatch.setattr(database, "FULL", 1)
    monkeypatch.setattr(database, "KEPT_BYTES", 0)
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('gone', true)")
        connection.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 10000))")
        try:
            (finding,) = examine(services)
        finally:
            connection.execute("SELECT pg_drop_replication_slot('gone')")
    assert (finding.check, "slot gone keeps" in finding.problem) == ("replication", True)


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
    command = [sys.executable, "-m", "service.cli", "doctor"]
    well = subprocess.run(command, env=environment(services), capture_output=True, text=True, check=False)
    assert (well.returncode, well.stdout) == (0, "nothing wrong was found\n"), well.stderr
    (settings.keys_dir / "kek").chmod(0o640)
    ill = subprocess.run([*command, "--json"], env=environment(services), capture_output=True, text=True, check=False)
    assert ill.returncode == 1
    assert '"check": "keys"' in ill.stdout
    (settings.keys_dir / "kek").unlink()
    elsewhere = environment(services, storage_dir=settings.storage_dir / "elsewhere")
    ill = subprocess.run([*command, "--json"], env=elsewhere, capture_output=True, text=True, check=False)
    assert {"keys", "storage"} <= {f["check"] for f in json.loads(ill.stdout)}, ill.stderr
    assert not (settings.storage_dir / "elsewhere").exists()  # it looks, and changes nothing
