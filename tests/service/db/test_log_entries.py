"""The log in the database has no gap, and is append-only."""

import json

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError

from service.db import log_entries
from service.db.tables import AuditEntry
from tests.service.conftest import submit


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
