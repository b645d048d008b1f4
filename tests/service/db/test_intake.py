"""Requests that come together are stored by one statement, each as if it had come alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import inspect, text

from service.db import intake, log_entries, requests
from service.db.tables import DeletionRequest
from service.domain.submission import Submission
from service.local.process import wait_until
from service.steps.path.request import accept_request
from tests.service.served import served


@contextmanager
def held(services):
    """Nothing can be stored meanwhile."""
    with psycopg.connect(services.settings.database_url) as connection:
        connection.execute("LOCK TABLE deletion_requests IN EXCLUSIVE MODE")
        yield


def first_is_under_way(services) -> bool:
    """Whether a group waits for the locked table, and nothing waits for its group."""
    with services.db.reading() as session:
        waiting = session.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
        )
    return waiting == 1 and not services.intake._waiting


COLUMNS = {c.name for c in DeletionRequest.__table__.columns} - intake.DERIVED.keys()


def submitting_key_id(new_key, services) -> UUID:
    """The id of an API key that may submit."""
    new_key("submit")
    with services.db.reading() as session:
        return session.scalar(text("SELECT id FROM api_keys LIMIT 1"))


def test_requests_that_come_together_are_stored_together(services, model, new_key):
    """While one waits for the database the others gather: one transaction for all, and to each its own answer."""
    headers = {"Authorization": f"Bearer {new_key('submit')}"}
    body = {"model": "tiny", "records": [{"text": "a record"}, {"text": "another"}]}
    bodies = [*[({"Idempotency-Key": str(k)}, body) for k in (1, 2, 2, 3)], ({}, {**body, "model": "none"}), ({}, body)]
    with served(services) as address, ThreadPoolExecutor(8) as pool:
        url = f"http://{address[0]}:{address[1]}/v1/deletion-requests"

        def submit(keyed, content):
            return pool.submit(httpx.post, url, json=content, headers={**headers, **keyed}, trust_env=False, timeout=30)

        with held(services):
            answers = [submit({}, body)]
            assert wait_until(lambda: first_is_under_way(services), 60)
            for keyed, content in bodies:
                answers.append(submit(keyed, content))
            assert wait_until(lambda: len(services.intake._waiting) == len(bodies), 60)
        responses = [answer.result() for answer in answers]
    assert [f.status_code for f in responses] == [202, 202, 202, 202, 202, 422, 202]
    ids = [f.json().get("id") for f in responses]
    assert ids[2] == ids[3]
    assert responses[2].json()["receipt"] == responses[3].json()["receipt"]
    with services.db.reading() as session:
        rows = session.execute(text("SELECT id::text, xmin::text, ref FROM deletion_requests ORDER BY seq")).all()
        sealed = session.execute(text("SELECT request_id::text, count(*) FROM records GROUP BY 1")).all()
        logged = [
            e["ref"] for e in map(json.loads, log_entries.entries(session, 0, 100)) if e["kind"] == "request.accepted"
        ]
    assert {row.id for row in rows} == {i for i in ids if i}
    assert dict(map(tuple, sealed)) == {row.id: 2 for row in rows}
    assert sorted(logged) == sorted(row.ref for row in rows)
    first, *others = (row.xmin for row in rows)
    assert len(others) == 4
    assert {first}.isdisjoint(others)
    assert len(set(others)) == 1


def test_one_that_cannot_be_stored_harms_nobody_it_came_with(services, model, new_key):
    """A caller whose API key is gone from the database meanwhile is refused; the other in its transaction is stored."""
    known = submitting_key_id(new_key, services)
    submission = Submission("tiny", ["a record"])
    with ThreadPoolExecutor() as pool:
        with held(services):
            calls = [pool.submit(accept_request, services, submission, known, None)]
            assert wait_until(lambda: first_is_under_way(services), 60)
            calls += [pool.submit(accept_request, services, submission, who, None) for who in (uuid4(), known)]
            assert wait_until(lambda: len(services.intake._waiting) == 2, 60)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            calls[1].result()
        stored = {calls[i].result().request.id for i in (0, 2)}
    with services.db.reading() as session:
        assert set(session.scalars(text("SELECT id FROM deletion_requests"))) == stored


AT = datetime(2026, 11, 1, 9, 30, 0, 123456, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))


def new_request(api_key_id: UUID, model: str, records: list[bytes], subject: bytes | None = None) -> intake.NewRequest:
    """A request of a model with sealed records."""
    request = DeletionRequest(
        id=uuid4(),
        ref=uuid4().hex,
        subject=subject,
        commitment=bytes(range(32)),
        received_at=AT,
        due_at=AT,
        accepted_at=AT,
        api_key_id=api_key_id,
        regulation="gdpr",
        wrapped_key=b"\\\x00\xff",
        callbacks=0,
        body_hash=b"h",
    )
    return intake.NewRequest(request, model, records, log_entries.encode_entry("request.accepted", ref=request.ref))


def test_requests_of_several_kinds_in_one_statement(services, model, new_key):
    """Of a model with and without approvals, of texts and of a person alone: each row as if it had come alone."""
    key_id = submitting_key_id(new_key, services)
    with services.db.transaction() as session:
        session.execute(
            text(
                "INSERT INTO models (id, name, policy, retain, heldout) "
                "VALUES (gen_random_uuid(), 'careful', '{\"approvals\": 1}', '{}', '{}')"
            )
        )
    new = partial(new_request, key_id)
    several = [
        new("careful", [b"\x00", b"\xff\\"]),
        new("tiny", [b"one"]),
        new("none", [b"x"]),
        new("tiny", [], b"sealed"),
    ]
    stored = intake.insert_requests(services.db, several)
    assert [f and f[1] for f in stored] == ["approval", None, None, "resolve"]
    assert stored[2] is None
    assert stored[1][0] == stored[3][0] != stored[0][0]
    with services.db.reading() as session:
        for i in (0, 1, 3):
            given = several[i].request
            row = requests.by_id(session, given.id)
            assert {name: getattr(row, name) for name in inspect(given).dict if name in COLUMNS} == {
                name: value for name, value in inspect(given).dict.items() if name in COLUMNS
            }
            assert row.model.name == several[i].model
            assert row.records_count == len(several[i].records)
            assert [record.sealed for record in row.records] == several[i].records
        entries = log_entries.entries(session, 0, 100)
    assert entries[-3:] == [several[i].entry for i in (0, 1, 3)]


def test_the_logs_lock_is_not_held_while_records_are_stored(services, model, new_key):
    """A trigger that looks: it is taken last, when everything else of the statement is done."""
    look = """
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
                <> (TG_ARGV[0] = 'held') THEN RAISE 'the lock'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER look BEFORE INSERT ON deletion_requests FOR EACH ROW EXECUTE FUNCTION look('free');
        CREATE TRIGGER look BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION look('free');
        CREATE TRIGGER look BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION look('held')
    """
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute(look)
    key_id = submitting_key_id(new_key, services)
    submission = Submission("tiny", ["a record", "another"])
    with ThreadPoolExecutor() as pool:
        with held(services):
            calls = [pool.submit(accept_request, services, submission, key_id, None)]
            assert wait_until(lambda: first_is_under_way(services), 60)
            calls += [pool.submit(accept_request, services, submission, key_id, None) for _ in range(2)]
            assert wait_until(lambda: len(services.intake._waiting) == 2, 60)
        assert all(call.result() for call in calls)


def test_what_is_stored_by_one_statement_is_committed(services, model, new_key):
    """Even on a connection that somebody left in another mode."""
    key_id = submitting_key_id(new_key, services)
    pooled = services.db.engine.raw_connection()
    pooled.driver_connection.autocommit = False
    pooled.close()
    submission = Submission("tiny", ["a record"])
    accepted = accept_request(services, submission, key_id, None)
    with services.db.reading() as session:
        assert requests.by_id(session, accepted.request.id) is not None
