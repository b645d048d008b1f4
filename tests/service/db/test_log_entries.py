"""The log in the database has no gap, is append-only, and does not tell exactly when and how much."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError

from service.db import log_entries
from service.db.tables import AuditEntry
from tests.service.conftest import submit
from tests.service.jobs import published


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


def test_entries_are_for_readers_and_auditors(api, services, model, new_key):
    """A submitter has proofs and checkpoints: the export that it checks comes from somebody who may read the log."""
    submit(api)
    services.log.sign()
    for scopes, status in ((("submit",), 403), (("download",), 403), (("read",), 200), (("audit",), 200)):
        key = {"Authorization": f"Bearer {new_key(*scopes)}"}
        assert api.get("/v1/log/entries", headers=key).status_code == status
        for path in ("checkpoint", "trust", "inclusion?index=0&size=1", "consistency?older=1&newer=2"):
            assert api.get(f"/v1/log/{path}", headers=key).status_code == 200, path
