"""The log in the database has no gap, is append-only, and does not tell exactly when and how much."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from service.db import log_entries
from service.db.log_tables import AuditEntry
from service.db.tables import Job
from service.doctor import examine
from service.domain.errors import PermanentJobError
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from tests.service.conftest import REQUESTS, submit
from tests.service.jobs import claim, published, to_certify


def test_the_log_has_no_gap_and_is_append_only(api, services, job):
    """Indices count up by one even past a rollback; the service's role may only append."""
    with pytest.raises(ZeroDivisionError), services.db.transaction() as session:
        log_entries.append(session, "test")
        raise ZeroDivisionError
    submit(api)
    with services.db.transaction() as session:
        entries = list(session.scalars(select(AuditEntry).order_by(AuditEntry.index)))
    assert [e.index for e in entries] == list(range(len(entries)))
    assert [json.loads(e.entry)["kind"] for e in entries] == [
        "api_key.created",
        "model.registered",
        "request.accepted",
        "job.batched",
        "request.accepted",
    ]
    statements = {
        "UPDATE": "UPDATE audit_entries SET entry = ''",
        "DELETE": "DELETE FROM audit_entries",
        "TRUNCATE": "TRUNCATE audit_entries",
        "INSERT": "INSERT INTO audit_entries (index, entry, leaf_hash) VALUES (99, '{}', '')",
        "trigger": "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "function": "DROP FUNCTION audit_append(bytea)",
        "role": "SET ROLE postgres",
    }
    with services.db.reading() as session:
        assert session.scalar(text("SELECT current_user")) == "unlearnd"
        assert not session.scalar(text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"))
    for name, statement in statements.items():
        with pytest.raises(ProgrammingError) as caught, services.db.transaction() as session:
            session.execute(text(statement))
        assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), name
    with psycopg.connect(services.settings.owner_database_url) as connection:  # the owner's hand slips
        for name in ("UPDATE", "DELETE", "TRUNCATE"):
            with pytest.raises(psycopg.errors.RaiseException, match="append-only"), connection.transaction():
                connection.execute(statements[name])
    submit(api)


def test_times_are_whole_hours_but_for_the_one_that_judges_keys(api, services, model):
    """Who knows when a person asked does not find the request; a certificate's entry is timed as the certificate is."""
    started = datetime.now(UTC)
    published(api, services, "a record")
    with services.db.reading() as session:
        entries = [json.loads(entry) for entry in log_entries.entries(session, 0, 100)]
    assert {"request.accepted", "job.batched", "job.thresholds", "version.published"} <= {e["kind"] for e in entries}
    for entry in entries:
        at = datetime.fromisoformat(entry["at"])
        if entry["kind"] == "job.certified":
            assert started - timedelta(seconds=1) <= at <= datetime.now(UTC)
        else:
            assert (at.minute, at.second, at.microsecond) == (0, 0, 0), entry["kind"]


def test_entries_and_proofs_are_for_readers_and_auditors(api, services, model, new_key):
    """A proof has the hashes of other people's entries, which can be guessed. Every release brings its own proof."""
    submit(api)
    services.log.sign()
    for scopes, status in ((("submit",), 403), (("download",), 403), (("read",), 200), (("audit",), 200)):
        key = {"Authorization": f"Bearer {new_key(*scopes)}"}
        for path in ("entries", "inclusion?index=0&size=1", "consistency?older=1&newer=2"):
            assert api.get(f"/v1/log/{path}", headers=key).status_code == status, path
        for path in ("checkpoint", "trust"):
            assert api.get(f"/v1/log/{path}", headers=key).status_code == 200, path


def test_proofs_end_with_the_last_checkpoint(api, services, model):
    """A proof of a larger tree would tell at once that somebody asked."""
    paths = ("inclusion?index=0&size={size}", "consistency?older=1&newer={size}")
    submit(api)
    services.log.sign()
    size = services.log.tree().size
    submit(api)
    for path in paths:
        assert api.get(f"/v1/log/{path.format(size=size)}").status_code == 200, path
        assert api.get(f"/v1/log/{path.format(size=size + 1)}").status_code == 422, path
    services.log.sign()
    for path in paths:
        assert api.get(f"/v1/log/{path.format(size=size + 1)}").status_code == 200, path


BAD_ENTRIES = [
    b"",
    b"x",
    b"[]",
    b'"kind"',
    b"{}",
    b'{"kind":"x"}',
    b'{"at":"x"}',
    b'{"at":"x","kind":1}',
    b'{"at":null,"kind":"x"}',
    b'{"at":"x","kind":"a","kind":"b"}',
    b'{"at":"x","kind":"x","n":NaN}',
    b'{"at":"\xff","kind":"x"}',
    b'{"at":"x","kind":"\\ud800"}',
    b'{"at":"x","kind":"\\u0000"}',
    b'{"at":"x","kind":"x"}\x00',
    b'{"at":"x","kind":"' + b"x" * (65_536 - 20) + b'"}',  # one byte more than a tile of entries can say
]


@pytest.mark.parametrize("entry", BAD_ENTRIES, ids=lambda entry: repr(entry[:40]))
def test_the_database_takes_no_entry_that_cannot_be_read(services, entry):
    """Whoever may append may append JSON objects of a bounded size, with a kind and a time."""
    with pytest.raises(DBAPIError), services.db.transaction() as session:
        log_entries.append_bytes(session, entry)
    with services.db.transaction() as session:
        assert log_entries.append(session, "test") == 0


@pytest.mark.parametrize("entry", [b"\xff", b"{}", b'{"kind":"job.thresholds"}', b'{ "at": "x", "kind": "x" }'])
@pytest.mark.usefixtures("durable")
def test_a_bad_entry_that_is_there_stops_nobody(api, services, job, entry):
    """An older release took it: control signs the log, certifies and publishes behind it, and the doctor is content."""
    with psycopg.connect(services.settings.owner_database_url) as connection:
        hashed = "sha256('\\x00'::bytea || %(e)s)"
        connection.execute(
            f"INSERT INTO audit_entries SELECT max(index) + 1, %(e)s, {hashed} FROM audit_entries", {"e": entry}
        )
    request, job_id = job
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)
    publish_version(services, job_id, fence)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["version"] == 1
    assert examine(services) == []


def test_a_job_whose_thresholds_are_anothers_is_not_certified(services, job):
    """The entry that a compute worker points to is of this job, and from before its training."""
    _, job_id = job
    to_certify(services, job_id)
    with services.db.transaction() as session:
        other = log_entries.append(session, "job.thresholds", job="another", before={"size": 0, "root": ""})
        session.get(Job, job_id).thresholds_index = other
    with hold_job(services, job_id, CONTROL_STAGES) as lease, pytest.raises(PermanentJobError) as caught:
        certify_job(services, job_id, lease.fence)
    assert caught.value.reason == "thresholds_unreadable"
