"""With 100,000 requests and 1,000 versions, what is done all the time still goes by an index."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
from sqlalchemy import event, text

from service.db import claims, due_requests, intake, jobs, models
from service.db.tables import DeletionRequest
from service.domain.states import COMPUTE_STAGES
from service.steps.path.batch import batch_requests
from service.steps.upkeep.deliver import deliver_callbacks
from service.steps.upkeep.sweep import wake_lost_work
from tests.growth import grow

LARGE = {"deletion_requests", "versions", "jobs", "audit_entries", "records", "outbox", "job_events"}


@contextmanager
def statements(services):
    """What is sent to the database meanwhile: (statement, parameters)."""
    seen: list[tuple[str, object]] = []

    def keep(_connection, _cursor, statement, parameters, _context, _many):
        seen.append((statement, parameters[0] if isinstance(parameters, list) else parameters))

    event.listen(services.db.engine, "before_cursor_execute", keep)
    try:
        yield seen
    finally:
        event.remove(services.db.engine, "before_cursor_execute", keep)


def plan_nodes(services, statement: str, parameters) -> list[dict]:
    """Every node of the plan of a statement."""
    with psycopg.connect(services.settings.database_url) as connection:
        (plan,) = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters).fetchone()
    nodes = [plan[0]["Plan"]]
    for node in nodes:  # grows meanwhile
        nodes += node.get("Plans", [])
    return nodes


def scanned(services, statement: str, parameters) -> list[str]:
    """Large tables that the plan of a statement reads from one end to the other."""
    nodes = plan_nodes(services, statement, parameters)
    scans = [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"]
    return [table for table in scans if table in LARGE]


FREQUENT = (
    "/v1/deletion-requests",
    "/v1/deletion-requests?status=pending",
    "/v1/deletion-requests?status=failed",
    "/v1/deletion-requests?model=tiny",
    "/v1/deletion-requests?owed=true",
    "/v1/deletion-requests?waits_for=approval",
    "/v1/deletion-requests?job=00000000-0000-0000-0000-000000000000",
    "/v1/overview",
    "/v1/jobs",
    "/v1/jobs?stage=done",
    "/v1/jobs?model=tiny",
    "/v1/models/tiny/versions",
    "/v1/models/tiny/versions/latest",
    "/v1/models/tiny/versions/500",
)


def test_everything_frequent_goes_by_an_index(api, services, model, new_key):
    """Sealing, listing (each filter), status, cancelling, purging, sweep, callbacks, overdue: nothing scans a table.

    (That this can fail: the same look finds the scan of a query without an index, below.) A claim looks the earliest
    deadline of a job up, and of what waits behind it: an entry of an index each, and no walk to it. (The simulator
    found the walk: with a thousand jobs and 400,000 requests, a claim took 1.4 s.)
    """
    grow(services, model, requests=100_000, versions=1000, entries=100_000)
    listed = api.get("/v1/deletion-requests?limit=5").json()["items"]
    with services.db.reading() as session:
        model_id = models.by_name(session, "tiny").id
    soon = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    with statements(services) as seen:
        for path in (*FREQUENT, f"/v1/deletion-requests/{listed[0]['id']}"):
            assert api.get(path).status_code == 200
        assert api.get("/v1/deletion-requests", params={"due_before": soon}).status_code == 200
        own = {"Authorization": f"Bearer {new_key('submit')}"}
        assert api.get("/v1/deletion-requests", headers=own).json()["items"] == []
        assert api.delete(f"/v1/deletion-requests/{listed[0]['id']}").status_code == 200
        assert batch_requests(services, model_id) is not None
        wake_lost_work(services)
        deliver_callbacks(services)
        with services.db.transaction() as session:
            jobs.redact_means(session, session.get(DeletionRequest, UUID(listed[1]["id"])))
        with services.db.transaction() as session:
            due_requests.overdue(session)
            due_requests.next_due(session)
            due_requests.failed(session)
            jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60)
    asked = {s: p for s, p in seen if s.lstrip().startswith(("SELECT", "UPDATE", "INSERT", "WITH", "DELETE"))}
    assert len(asked) > 20
    slow = {s: tables for s, p in asked.items() if (tables := scanned(services, s, p))}
    assert not slow, slow
    given = json.dumps([{"model": "tiny", "records": ["\\x00"], "entry": "\\x00"}])
    columns = tuple(
        c.name for c in DeletionRequest.__table__.columns if c.identity is None and c.name not in intake.DERIVED
    )
    assert not scanned(services, intake.statement(columns), {"given": given})
    assert scanned(services, "SELECT count(*) FROM deletion_requests WHERE regulation = 'x'", {}) == [
        "deletion_requests"
    ]
    with statements(services) as seen, services.db.transaction() as session:
        assert claims.most_urgent(session, COMPUTE_STAGES) is not None
    ((statement, parameters),) = seen
    used = {node.get("Index Name") for node in plan_nodes(services, statement, parameters)}
    assert {"ix_deletion_requests_job_due", "ix_deletion_requests_pending_due"} <= used
    assert "ix_deletion_requests_due_at" not in used


def test_the_log_is_appended_to_by_an_index(services, model):
    """What the SQL function asks for, max(index), is one step into the index."""
    grow(services, model, entries=100_000)
    assert not scanned(services, "SELECT coalesce(max(a.index) + 1, 0) FROM audit_entries a", {})
    with services.db.reading() as session:
        query = "SELECT prosrc FROM pg_proc WHERE proname = 'audit_append'"
        assert "SELECT coalesce(max(a.index) + 1, 0)" in session.scalar(text(query))
