"""Each process's own database login: what its steps need works with it, and nothing else does."""

from datetime import UTC, datetime

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.db import jobs, log_entries
from service.db.base import Base
from service.db.roles import RIGHTS
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import fail_attempt, hold_job
from service.main import create_app
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.compute_input import compute_input
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import (
    store_epoch,
    store_progress,
    store_put_off,
    store_rejected,
    store_stage,
)
from service.steps.upkeep.purge import purge_due
from service.steps.upkeep.sweep import collect_garbage, wake_lost_work
from tests.service.conftest import REQUESTS, only_model, registration, submit
from tests.service.jobs import EPOCH, claim, to_certify
from tests.status_door import planting


@pytest.fixture
def api(as_process, new_key):
    """An HTTP client of an application that has the API's own login, with an admin key."""
    with TestClient(create_app(as_process("api")), headers={"Authorization": f"Bearer {new_key('admin')}"}) as client:
        yield client


def test_every_table_has_its_rights_decided():
    """A new table is in the list of rights, or no process could read it."""
    assert set(RIGHTS) == {*Base.metadata.tables, "alembic_version"}


def test_the_path_runs_with_three_logins(api, as_process, services, base):
    """From the registration to a second version: the API, control and compute each with its own."""
    control, compute = as_process("control"), as_process("compute")
    assert api.post("/v1/models", json=registration(base)).status_code == 201
    sent = []
    for number in (1, 2):
        sent.append(submit(api, records=[{"text": f"the record {number}"}]))
        job_id = batch_requests(control, only_model(services))
        assert compute_input(compute, job_id, 0).texts == [f"the record {number}"]
        to_certify(compute, job_id)
        with hold_job(control, job_id, CONTROL_STAGES) as lease:
            certify_job(control, job_id, lease.fence)
            publish_version(control, job_id, lease.fence)
        assert api.get(f"{REQUESTS}/{sent[-1]['id']}").json()["version"] == number
        assert api.get(f"/v1/jobs/{job_id}/certificate").status_code == 200
        assert api.get(f"/v1/models/tiny/versions/{number}/files/model/config.json").status_code == 200
    for upkeep in (wake_lost_work, purge_due, collect_garbage):
        upkeep(control)
    withdrawal = api.post("/v1/models/tiny/versions/2/withdraw", json={"reason": "faulty", "reopen": True})
    assert withdrawal.status_code == 200, withdrawal.text
    assert api.get("/metrics").status_code == 200
    assert api.post(f"{REQUESTS}/{sent[0]['id']}/purge").status_code == 200


def test_a_compute_workers_login_is_enough_for_its_steps(api, as_process, services, base):
    """Progress, epochs, rejected requests, an attempt that is repeated, and a job that is given up."""
    compute = as_process("compute")
    api.post("/v1/models", json=registration(base))
    request = submit(api)
    job_id = batch_requests(as_process("control"), only_model(services))
    with hold_job(compute, job_id, COMPUTE_STAGES) as lease:
        lease.beat()
        store_stage(compute, job_id, lease.fence, Stage.UNLEARN)
        store_progress(compute, job_id, lease.fence, "train", 0.5)
        store_epoch(compute, job_id, lease.fence, EPOCH)
        store_rejected(compute, job_id, lease.fence, {0: "too_short"})
        assert not lease.lost.is_set()
        fail_attempt(compute, lease, "test", permanent=False)
    with services.db.transaction() as session:
        jobs.by_id(session, job_id).not_before = None
    with hold_job(compute, job_id, COMPUTE_STAGES) as lease:
        fail_attempt(compute, lease, "test", permanent=True)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["status"] == "rejected"
    assert api.get(f"/v1/jobs/{job_id}").json()["stage"] == "quarantined"


@pytest.mark.parametrize("dialect", [None, "opendsr"])
def test_a_compute_workers_login_splits_a_batch(api, as_process, services, base, dialect):
    """One is put off, the others go back in two parts, also where a controller hears that they are pending again."""
    compute = as_process("compute")
    api.post("/v1/models", json=registration(base))
    sent = [submit(api, callback_url="https://hooks.example/x") for _ in range(3)]
    with services.db.transaction() as session:
        session.execute(text("UPDATE deletion_requests SET dialect = :dialect"), {"dialect": dialect})
    job_id = batch_requests(as_process("control"), only_model(services))
    with hold_job(compute, job_id, COMPUTE_STAGES) as lease:
        store_stage(compute, job_id, lease.fence, Stage.UNLEARN)
        store_put_off(compute, job_id, lease.fence, [1])
        fail_attempt(compute, lease, "test", permanent=True)
    states = [api.get(f"{REQUESTS}/{request['id']}").json() for request in sent]
    assert [(state["status"], state["reason"], state["job_id"]) for state in states] == [("pending", "split", None)] * 3


def test_the_apis_login_is_enough_for_its_routes(api, as_process, services, base, tmp_path):
    """Keys, corpora, cancelled, extended and retried requests."""
    api.post("/v1/models", json=registration(base))
    key = api.post("/v1/api-keys", json={"name": "one more", "scopes": ["read"]})
    assert key.status_code == 201, key.text
    assert api.delete(f"/v1/api-keys/{key.json()['id']}").status_code == 204
    (tmp_path / "corpus.jsonl").write_text('{"text": "a record"}\n')
    corpus = {"name": "c", "path": str(tmp_path / "corpus.jsonl")}
    assert api.post("/v1/models/tiny/corpora", json=corpus).status_code in (201, 202)
    assert api.delete("/v1/models/tiny/corpora/c").status_code == 204
    assert api.delete(f"{REQUESTS}/{submit(api)['id']}").status_code in (200, 204)
    request = submit(api)
    extension = api.post(f"{REQUESTS}/{request['id']}/extend", json={"reason": "complexity"})
    assert extension.status_code == 200, extension.text
    job_id = batch_requests(as_process("control"), only_model(services))
    with hold_job(as_process("compute"), job_id, COMPUTE_STAGES) as lease:
        fail_attempt(as_process("compute"), lease, "test", permanent=True)
    assert api.post(f"{REQUESTS}/{request['id']}/retry").json()["status"] == "pending"


A_REQUEST = """INSERT INTO deletion_requests (id, model_id, api_key_id, regulation, received_at, due_at, records_count,
ref, commitment, body_hash) SELECT gen_random_uuid(), model_id, (SELECT id FROM api_keys), 'gdpr', now(), now(), 1,
'x', '', '' FROM versions LIMIT 1"""
A_VERSION = """INSERT INTO versions (id, model_id, number, digest, files, metrics)
SELECT gen_random_uuid(), model_id, 1, 'x', '[]', '{}' FROM versions"""
A_MODEL = "INSERT INTO models (id, name, policy, retain, heldout) VALUES (gen_random_uuid(), 'm', '{}', '{}', '{}')"
A_CERTIFICATE = "INSERT INTO certificates (job_id, envelope, digest, overall) SELECT id, '', '', 'PASS' FROM jobs"
A_KEY = "INSERT INTO api_keys (id, name, key_hash, scopes) VALUES (gen_random_uuid(), 'k', '', '{admin}')"
FORBIDDEN = {
    "compute": [
        "SELECT key_hash FROM api_keys",
        A_KEY,
        A_MODEL,
        A_VERSION,
        A_CERTIFICATE,
        "UPDATE versions SET digest = 'x'",
        "UPDATE models SET policy = '{}'",
        "UPDATE models SET heldout = '{}'",
        "UPDATE jobs SET policy = '{}'",
        "UPDATE jobs SET parent_version_id = NULL",
        "INSERT INTO jobs (id) VALUES (gen_random_uuid())",
        "UPDATE deletion_requests SET commitment = ''",
        "UPDATE deletion_requests SET wrapped_key = NULL",
        "UPDATE deletion_requests SET version = 1",
        "UPDATE deletion_requests SET status = 'completed'",
        "UPDATE deletion_requests SET status = 'not_memorised'",
        "UPDATE deletion_requests SET status = 'cancelled'",
        "UPDATE deletion_requests SET status = 'publishing'",
        "UPDATE deletion_requests SET job_id = NULL",
        "UPDATE deletion_requests SET job_id = gen_random_uuid()",
        "UPDATE deletion_requests SET status = 'pending', job_id = NULL, split_job_id = gen_random_uuid()",
        "DELETE FROM records",
        "INSERT INTO records VALUES (gen_random_uuid(), 0, '')",
        "DELETE FROM job_events",
        "DELETE FROM outbox",
        "SELECT * FROM certificates",
        "SELECT * FROM downloads",
        "SELECT * FROM corpus_records",
    ],
    "api": [
        A_VERSION,
        A_CERTIFICATE,
        "UPDATE versions SET digest = 'x'",
        "UPDATE jobs SET outcome = 'passed'",
        "UPDATE models SET name = 'x'",
        "UPDATE jobs SET fence = 9",
        "DELETE FROM deletion_requests",
        "INSERT INTO jobs (id) VALUES (gen_random_uuid())",
        "DELETE FROM job_events",
        "DELETE FROM api_keys",
        "UPDATE api_keys SET scopes = '{admin}'",
        "DELETE FROM outbox",
        "UPDATE certificates SET envelope = ''",
    ],
    "control": [
        A_KEY,
        "UPDATE api_keys SET revoked_at = NULL",
        A_REQUEST,
        A_MODEL,
        "DELETE FROM versions",
        "DELETE FROM deletion_requests",
    ],
}
OF_NOBODY = [
    "DELETE FROM audit_entries",
    "INSERT INTO audit_entries (index, entry, leaf_hash) VALUES (9, '{}', '')",
    "UPDATE alembic_version SET version_num = '0000'",
    "DROP TABLE jobs",
    "SET ROLE postgres",
    "SET ROLE unlearnd_app",
    "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
]


@pytest.mark.parametrize("process", FORBIDDEN)
def test_a_login_is_refused_what_its_process_never_does(job, as_process, process):
    """With a job and a version there; the server's word is: insufficient privilege."""
    own = as_process(process)
    for statement in [*FORBIDDEN[process], *OF_NOBODY]:
        with pytest.raises(DBAPIError) as caught, own.db.transaction() as session:
            session.execute(text(statement))
        assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), statement


@pytest.mark.parametrize(
    "status", ["pending", "publishing", "completed", "not_memorised", "cancelled", "rejected", "failed"]
)
def test_a_compute_worker_changes_no_request_that_is_not_in_its_hands(job, as_process, services, status):
    """Neither one that waits for its job, nor one that control has taken over, nor one that has ended."""
    with planting(), services.db.transaction() as session:
        waits = ", job_id = NULL" if status == "pending" else ""
        session.execute(text(f"UPDATE deletion_requests SET status = '{status}'{waits}"))
    own = as_process("compute")
    for target in ("unlearning", "verifying", "rejected", "failed", "pending"):
        with pytest.raises(DBAPIError) as caught, own.db.transaction() as session:
            session.execute(text(f"UPDATE deletion_requests SET status = '{target}', finished_at = now()"))
        assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), target


OF_ANOTHER = [
    ("compute", "job.certified"),
    ("compute", "request.accepted"),
    ("compute", "version.published"),
    ("compute", "request.cancelled"),
    ("api", "job.certified"),
    ("api", "version.published"),
    ("api", "log.begun_anew"),
]


def test_a_process_cannot_say_in_the_log_what_another_does(as_process, subtests):
    """Entries that would close a promise, or name a version, come from who keeps it."""
    wired = {process: as_process(process) for process in ("api", "compute", "control")}
    for process, kind in OF_ANOTHER:
        with subtests.test(kind, process=process):
            with pytest.raises(DBAPIError) as caught, wired[process].db.transaction() as session:
                log_entries.append(session, kind, job="j", ref="r", due="2026-01-01")
            assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege)
            with wired["control"].db.transaction() as session:
                log_entries.append(session, kind, job="j", ref="r", due="2026-01-01")


A_JOB, A_REF = "(SELECT id FROM jobs LIMIT 1)", "(SELECT ref FROM deletion_requests LIMIT 1)"
NOT_OF_ITS_JOB = [
    ("job.quarantined", "'job', {job}, 'reason', 'Vera Victim, 12 Sample Street'"),
    ("job.quarantined", "'job', {job}, 'reason', 'test', 'note', 'x'"),
    ("job.quarantined", "'job', gen_random_uuid(), 'reason', 'test'"),
    ("job.quarantined", "'reason', 'test'"),
    ("job.thresholds", "'job', {job}, 'thresholds', 'Vera Victim'"),
    ("job.thresholds", "'job', {job}, 'before', json_build_object('size', 1, 'root', 'Vera Victim')"),
    ("requests.rejected", "'job', {job}, 'at_stage', 'unlearn', 'refs', json_build_array('another')"),
    ("job.split", "'job', {job}, 'reopened', json_build_array({ref})"),
]


def test_a_compute_worker_writes_no_text_into_the_log_and_of_its_jobs_alone(as_process, job, subtests):
    """Each entry has listed members of a fixed form, and names a job and requests of it."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:00:00+00:00}"
    compute, control = as_process("compute"), as_process("control")
    for kind, members in NOT_OF_ITS_JOB:
        entry = f"json_build_object('kind', '{kind}', 'at', '{now}', {members})".format(job=A_JOB, ref=A_REF)
        statement = text(f"SELECT audit_append(convert_to({entry}::text, 'UTF8'))")
        with subtests.test(kind, members=members):
            with pytest.raises(DBAPIError) as caught, compute.db.transaction() as session:
                session.execute(statement)
            assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), caught.value
            with control.db.transaction() as session:
                session.execute(statement)


NOTIFY = "INSERT INTO outbox (id, request_id, status, target, next_at, delivered_at) SELECT gen_random_uuid(), id, "
NOT_HAPPENED = [
    f"{NOTIFY} 'completed', 0, now(), NULL FROM deletion_requests",
    f"{NOTIFY} 'overdue', -1, now(), now() FROM deletion_requests",
    f"{NOTIFY} 'overdue', -1, now(), NULL FROM deletion_requests",
    f"{NOTIFY} status, 0, now(), now() FROM deletion_requests",
    f"{NOTIFY} status, 0, NULL, NULL FROM deletion_requests",
    f"{NOTIFY} status, -1, now() + interval '1 day', NULL FROM deletion_requests",
    "UPDATE outbox SET delivered_at = now()",
    "UPDATE outbox SET next_at = NULL",
    "UPDATE outbox SET next_at = now() + interval '10 years'",
    "UPDATE outbox SET status = 'completed'",
]


def test_a_compute_worker_announces_nothing_that_has_not_happened(as_process, services, job, subtests):
    """Nor does it end or put off what somebody is waiting for."""
    with services.db.transaction() as session:
        session.execute(text(f"{NOTIFY} status, 0, now(), NULL FROM deletion_requests"))
    own = as_process("compute")
    for statement in NOT_HAPPENED:
        with subtests.test(statement):
            with pytest.raises(DBAPIError) as caught, own.db.transaction() as session:
                session.execute(text(statement))
            assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege)


def test_one_login_for_everything_goes_on_working(services, job):
    """An installation of before: its one login claims, computes, certifies and publishes."""
    _, job_id = job
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)
    publish_version(services, job_id, fence)
