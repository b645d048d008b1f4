"""Postgres is the queue of record: windows, claims, fences, publishing once, sweeping."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import httpcore
import psycopg
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from standardwebhooks import Webhook, WebhookVerificationError

from service import migrate
from service.audit.verify import verify
from service.callbacks.webhooks import OutgoingCall, RefusedTarget, is_public_address, send
from service.db import jobs, log_entries, models
from service.db.tables import AuditEntry, Job, Outbox, Version
from service.domain.errors import LostLease
from service.domain.report import BaselineSummary, ChildReport
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import Lease, fail_attempt, hand_back, hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch, store_progress, store_stage, store_thresholds
from service.steps.path.verify import store_report
from service.steps.upkeep.deliver import deliver_callbacks
from service.steps.upkeep.sweep import collect_garbage, wake_lost_work
from tests import issuer
from tests.growth import grow
from tests.integration.conftest import REQUESTS, only_model, submit

REPORT = {
    **issuer.REPORT, "outcome": "passed", "reason": None, "verdicts": {"0": "PASS"}, "memorised": [0],
    "utility": {**issuer.REPORT["utility"], "max_ratio": 1.25}, "over_forgotten": 0,
    "earlier": {"requests": 0, "regressed": []},
    "files": {
        "model/config.json": hashlib.sha256(b"{}").hexdigest(),
        "model/model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    },
}  # fmt: skip

EPOCH = {"epoch": 1, "el": 0.1, "ma": 0.5, "loss": 1.0, "perplexity": 9.0}


def claim(services, job_id, stages=COMPUTE_STAGES) -> int | None:
    """A claim with the service's lease."""
    with services.db.transaction() as session:
        return jobs.claim(session, job_id, "me", stages, lease_seconds=services.settings.lease_seconds)


def expire(services, job_id) -> None:
    """Let a lease run out now."""
    with services.db.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=func.now() - timedelta(seconds=1)))


def child_report(report: dict) -> ChildReport:
    """What the compute child says, of values as `REPORT` has them."""
    verdicts = {int(index): verdict for index, verdict in report["verdicts"].items()}
    return ChildReport(issuer.findings(report), verdicts, report["memorised"])


def baseline(report: dict) -> BaselineSummary:
    """What was measured before training."""
    found = issuer.findings(report)
    return BaselineSummary(
        found.limits, found.before, 9.0, report["memorised"], len(report["verdicts"]), 0, 0, found.thresholds
    )


def to_certify(services, job_id, report=REPORT) -> None:
    """Take a job through the compute stages with this report, and leave a candidate."""
    fence = claim(services, job_id)
    candidate = services.storage.candidate(job_id, fence) / "model"
    candidate.mkdir(parents=True, exist_ok=True)
    (candidate / "model.safetensors").write_bytes(b"weights")
    (candidate / "config.json").write_text("{}")
    store_thresholds(services, job_id, fence, baseline(report))
    for stage in (Stage.UNLEARN, Stage.MERGE, Stage.VERIFY):
        store_stage(services, job_id, fence, stage)
    store_report(services, job_id, fence, child_report(report))


def test_one_window_one_job_and_no_second_while_it_runs(api, services, model):
    """Requests of one window form one job; later ones wait for the model's next."""
    first, second = submit(api), submit(api)
    model_id = only_model(services)
    job_id = batch_requests(services, model_id)
    third = submit(api)
    assert batch_requests(services, model_id) is None
    found = {i: api.get(f"{REQUESTS}/{i}").json() for i in (first["id"], second["id"], third["id"])}
    assert {found[first["id"]]["job_id"], found[second["id"]]["job_id"]} == {str(job_id)}
    assert found[third["id"]]["status"] == "pending"
    with pytest.raises(IntegrityError), services.db.transaction() as session:
        other = session.get(Job, job_id)
        session.add(Job(model_id=model_id, parent_version_id=other.parent_version_id, policy={}))


def test_two_workers_batching_at_once_make_one_job(api, services, model):
    """The model's row is locked while a window is sealed."""
    for _ in range(4):
        submit(api)
    model_id, made = only_model(services), []
    threads = [threading.Thread(target=lambda: made.append(batch_requests(services, model_id))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([m for m in made if m]) == 1


def test_accepting_does_not_wait_for_batching_nor_the_other_way_round(api, services, model):
    """Sealing holds the model and then asks for the log; accepting holds the log and then looks at the model's key."""
    answers = []
    with services.db.transaction() as session:
        assert models.lock(session, only_model(services))
        thread = threading.Thread(target=lambda: answers.append(submit(api)))
        thread.start()
        thread.join(20)
        assert answers
        assert answers[0]["status"] == "pending"
        log_entries.append(session, "test")
    held = threading.Event()

    def hold_the_log() -> None:
        with services.db.transaction() as session:
            log_entries.append(session, "test")
            held.wait(10)

    thread = threading.Thread(target=hold_the_log)
    thread.start()
    with services.db.transaction() as session:
        assert models.lock(session, only_model(services)) is not None
    held.set()
    thread.join()


def test_a_job_is_claimed_once_until_its_lease_runs_out(services, job):
    """A second message takes zero rows; after the lease the fence moves on."""
    _, job_id = job
    first = claim(services, job_id)
    assert claim(services, job_id) is None
    assert claim(services, job_id, CONTROL_STAGES) is None
    expire(services, job_id)
    assert claim(services, job_id) == first + 1


RACER = """
import os, sys, threading
from uuid import UUID, uuid4
from service.app import build
from service.config import Settings
from service.db import jobs
from service.domain.report import BaselineSummary, ChildReport
from service.domain.states import COMPUTE_STAGES, Outcome
from worker.tasks import holding

parts = build(Settings.model_validate_json(sys.argv[1]))
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)

def work(parts, lease):
    os.write(out, f"{lease.job_id} begins\\n".encode())
    with parts.db.transaction() as session:
        job = jobs.owned(session, lease.job_id, lease.fence)
        job.stage = "certify"
        jobs.finish(session, job, Outcome.REJECTED, None)
    os.write(out, f"{lease.job_id} ends\\n".encode())

def race():
    for job_id in sys.argv[3:]:
        holding(parts, UUID(job_id), COMPUTE_STAGES, work)

threads = [threading.Thread(target=race) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
parts.close()
"""


def test_two_workers_over_200_jobs_never_run_one_at_a_time_twice(services, model, tmp_path):
    """Two processes of four threads, each with a message for every job: each job begins once and ends before anything.

    (The same with whole compute workers and their children is in `tests/chaos`, marked slow.)
    """
    grow(services, "tiny", versions=200)
    with services.db.transaction() as session:
        # One active job a model is the rule; here what is asked is who claims, so the models are made up.
        for statement in (
            "INSERT INTO models (id, name, policy, retain, heldout) "
            "SELECT gen_random_uuid(), 'm' || n, '{}', '{}', '{}' FROM generate_series(1, 200) n",
            "WITH j AS (SELECT id, row_number() OVER () n FROM jobs), "
            "m AS (SELECT id, substr(name, 2)::int n FROM models WHERE name <> 'tiny') "
            "UPDATE jobs SET stage = 'queued', outcome = NULL, model_id = m.id FROM j, m "
            "WHERE j.id = jobs.id AND m.n = j.n",
        ):
            session.execute(text(statement))
        ids = [str(i) for i in session.scalars(select(Job.id))]
    told = tmp_path / "told"
    told.touch()
    arguments = [services.settings.model_dump_json(), str(told), *ids]
    racers = [subprocess.Popen([sys.executable, "-c", RACER, *arguments]) for _ in range(2)]
    assert [racer.wait(120) for racer in racers] == [0, 0]
    lines = told.read_text().splitlines()
    assert sorted(lines) == sorted(f"{i} {word}" for i in ids for word in ("begins", "ends"))
    assert len(ids) == 200
    with services.db.reading() as session:
        assert set(session.scalars(select(Job.fence))) == {1}


def test_a_zombies_writes_are_refused_by_the_fence(services, job):
    """Every write under the old fence raises, and the heartbeat says lost. (Without `Job.fence == fence` in
    `jobs.owned` and `jobs.heartbeat` this fails: checked by removing them.)"""
    _, job_id = job
    old = claim(services, job_id)
    expire(services, job_id)
    new = claim(services, job_id)
    writes = [
        lambda f: store_stage(services, job_id, f, Stage.UNLEARN),
        lambda f: store_progress(services, job_id, f, "train", 0.5),
        lambda f: store_thresholds(services, job_id, f, baseline(REPORT)),
        lambda f: store_epoch(services, job_id, f, EPOCH),
        lambda f: store_report(services, job_id, f, child_report(REPORT)),
        lambda f: publish_version(services, job_id, f),
    ]
    for write in writes:
        with pytest.raises(LostLease):
            write(old)
    lease = Lease(services, job_id, old)
    lease.beat()
    assert lease.lost.is_set()
    for write in writes[:4]:
        write(new)


def test_a_zombie_cannot_publish(services, job):
    """Publication under an old fence leaves no version, even with everything prepared."""
    _, job_id = job
    to_certify(services, job_id)
    old = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, old)
    expire(services, job_id)
    new = claim(services, job_id, CONTROL_STAGES)
    with pytest.raises(LostLease):
        certify_job(services, job_id, old)
    with pytest.raises(LostLease):
        publish_version(services, job_id, old)
    fail_attempt(services, Lease(services, job_id, old), "told by a zombie", permanent=True)
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.PUBLISH
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, new)


def test_certify_and_publish_make_one_verified_version(api, services, job):
    """The folder passes our own verifier, the request is completed, the working folder is gone."""
    request, job_id = job
    to_certify(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)
        with pytest.raises(LostLease):
            publish_version(services, job_id, lease.fence)
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["verdict"], found["version"]) == ("completed", "PASS", 1)
    version = api.get("/v1/models/tiny/versions/latest").json()
    assert (version["version"], version["parent"]) == (1, 0)
    folder = services.storage.release(version["digest"])
    statement = verify(folder).statement
    assert statement["predicate"]["requests"][0]["ref"] == request["ref"]
    assert statement["predicate"]["requests"][0]["commitment"] == request["receipt"]["commitment"]
    assert {f["path"] for f in version["files"]} == {
        "model/model.safetensors",
        "model/config.json",
        "model/README.md",
        "model.sig",
        "trust.json",
        "certificate.dsse.json",
        "certificate.tlog-proof",
    }
    assert api.get("/v1/models/tiny/versions/1/certificate").content == (folder / "certificate.dsse.json").read_bytes()
    assert not services.storage.jobs_present()


def test_publishing_again_after_a_crash_before_the_commit(services, job, monkeypatch):
    """The renamed folder without a row is found by its digest and becomes the version."""
    _, job_id = job
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)

    def crash(*_):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(models, "set_latest", crash)
        with pytest.raises(RuntimeError):
            publish_version(services, job_id, fence)
    assert len(services.storage.releases()) == 2
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, fence)
    assert len(services.storage.releases()) == 2
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 2


def test_a_failed_run_is_certified_as_failed_and_publishes_nothing(api, services, job):
    """Its record says FAIL and can be fetched; the offline verifier does not take it for a release."""
    request, job_id = job
    report = {**REPORT, "outcome": "failed", "reason": "criterion_missed", "verdicts": {"0": "FAIL"}}
    to_certify(services, job_id, {**report, "after": {"el": 0.5, "ma": 0.9}})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["verdict"], found["reason"]) == ("failed", "FAIL", "criterion_missed")
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 0
    envelope = api.get(f"/v1/jobs/{job_id}/certificate").json()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    retried = api.post(f"{REQUESTS}/{request['id']}/retry").json()
    assert (retried["status"], retried["job_id"]) == ("pending", None)


def test_a_regression_says_which_request(api, services, job):
    """An earlier request that came back blocks publication; job and record name it."""
    request, job_id = job
    earlier = {"requests": 2, "regressed": ["e" * 32]}
    failed = {"outcome": "failed", "reason": "earlier_request_regressed", "earlier": earlier}
    to_certify(services, job_id, {**REPORT, **failed})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["reason"]) == ("failed", "earlier_request_regressed")
    assert api.get(f"/v1/jobs/{job_id}").json()["metrics"]["earlier"] == earlier
    record = json.loads(base64.b64decode(api.get(f"/v1/jobs/{job_id}/certificate").json()["payload"]))["predicate"]
    assert (record["overall"], record["verification"]["earlier"]) == ("FAIL", earlier)
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 0


def test_attempts_are_counted_and_given_up(api, services, job):
    """Back-off between attempts, then quarantine with the reason; a graceful stop does not count."""
    request, job_id = job
    for attempt in range(1, 4):
        fence = claim(services, job_id)
        assert fence is not None
        hand_back(services, Lease(services, job_id, fence))
        fence = claim(services, job_id)
        fail_attempt(services, Lease(services, job_id, fence), "child_killed", permanent=False)
        assert claim(services, job_id) is None
        with services.db.transaction() as session:
            assert session.get(Job, job_id).attempts == attempt
            session.execute(update(Job).values(not_before=None))
    assert api.get(f"/v1/jobs/{job_id}").json()["stage"] == "quarantined"
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["verdict"], found["reason"]) == ("failed", "NOT_TESTED", "child_killed")
    submit(api)
    assert batch_requests(services, only_model(services)) is not None


def age_progress(services) -> None:
    """As if the last step of progress were longer ago than is allowed."""
    long_ago = func.now() - timedelta(seconds=services.settings.stall_seconds + 1)
    with services.db.transaction() as session:
        session.execute(update(Job).values(progress_at=long_ago))


def test_a_stuck_job_loses_its_lease(services, job):
    """A heartbeat without a step of progress is not believed for ever."""
    _, job_id = job
    lease = Lease(services, job_id, claim(services, job_id))
    lease.steps = 1
    lease.beat()
    age_progress(services)
    lease.steps = 2
    lease.beat()
    assert not lease.lost.is_set()
    age_progress(services)
    lease.beat()
    assert lease.lost.is_set()


def test_the_sweep_wakes_what_was_lost_and_not_again_at_once(services, job):
    """A job whose wake-up was lost is woken, then left alone for a lease's time."""
    _, job_id = job
    with services.db.transaction() as session:
        session.execute(update(Job).values(woken_at=None))
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == [job_id]
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == []
    claim(services, job_id)
    expire(services, job_id)
    with services.db.transaction() as session:
        session.execute(update(Job).values(woken_at=None))
        assert jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=60) == [job_id]
    wake_lost_work(services)


def test_the_sweep_gives_up_jobs_whose_last_attempt_died_silently(api, services, job):
    """Killed with its worker three times: nobody is left to say so but the sweep."""
    request, job_id = job
    for _ in range(3):
        assert claim(services, job_id)
        expire(services, job_id)
    wake_lost_work(services)
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "attempts_exhausted"


def test_collect_removes_only_what_nothing_needs(services, job):
    """Working folders of ended jobs and old orphan releases go; live ones and versions stay."""
    _, job_id = job
    services.storage.work(job_id, 1)
    orphan = services.storage.publish(services.storage.staging("x"), "0" * 64)
    collect_garbage(services)
    assert services.storage.jobs_present() == [job_id]
    assert orphan.exists()
    os.utime(orphan, (0, 0))
    with services.db.transaction() as session:
        session.execute(update(Job).values(stage="done"))
    collect_garbage(services)
    assert not services.storage.jobs_present()
    assert not orphan.exists()
    assert len(services.storage.releases()) == 1


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
        "model.registered", "request.accepted", "job.batched", "request.accepted",
    ]  # fmt: skip
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


def test_migrating_again_changes_nothing_and_gives_a_new_password(services):
    """Grants and the service's role are made once; a second run is the same run."""
    settings = services.settings
    migrate.upgrade(settings.owner_database_url, settings.database_url.replace("unlearnd@", "unlearnd:secret@", 1))
    with services.db.transaction() as session:
        log_entries.append(session, "test")


def test_events_are_streamed_and_taken_up_again(api, services, job):
    """Server-Sent Events come with ids; Last-Event-ID goes on behind; the stream ends with the job."""
    _, job_id = job
    fence = claim(services, job_id)
    store_stage(services, job_id, fence, Stage.UNLEARN)
    store_epoch(services, job_id, fence, EPOCH)
    fail_attempt(services, Lease(services, job_id, fence), "x", permanent=True)
    lines = api.get(f"/v1/jobs/{job_id}/events").text.split("\n")
    kinds = [line.strip()[7:] for line in lines if line.startswith("event: ")]
    ids = [line.strip()[4:] for line in lines if line.startswith("id: ")]
    assert kinds == ["stage", "stage", "epoch", "stage", "done"]
    again = api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": ids[2]}).text
    assert [line.strip()[4:] for line in again.split("\n") if line.startswith("id: ")] == ids[3:]
    assert api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}).status_code == 422
    assert [e["epoch"] for e in api.get(f"/v1/jobs/{job_id}/history").json()] == [1]


class Listener(BaseHTTPRequestHandler):
    """A submitter's callback endpoint: refuses the first call, takes the second."""

    calls: list[dict] = []  # noqa: RUF012
    bodies: list[tuple[bytes, dict]] = []  # noqa: RUF012

    def do_POST(self):
        """Keep the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append((body, dict(self.headers)))
        self.calls.append(json.loads(body))
        self.send_response(500 if len(self.calls) == 1 else 204)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def listening(server: HTTPServer):
    """A server that serves meanwhile."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Trickle(BaseHTTPRequestHandler):
    """A receiver that keeps busy and never comes to an end."""

    def do_POST(self):
        """A header now and then."""
        self.send_response(204)
        self.flush_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x: y\r\n")
                time.sleep(0.05)  # as slow as it likes, but busy

    def log_message(self, *_):
        """Say nothing."""


def test_a_receiver_that_trickles_costs_its_time_and_no_more(api, services, model):
    """The time-out is for the whole of a callback, not for each of its bytes."""
    services.settings.callback_seconds = 0.5
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Trickle)) as server:
        request = submit(api, callback_url=f"http://127.0.0.1:{server.server_port}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        began = time.monotonic()
        assert deliver_callbacks(services) == 0
        assert time.monotonic() - began < 10
        with services.db.transaction() as session:
            assert session.scalar(select(Outbox.attempts)) == 1


def test_callbacks_are_made_until_they_arrive(api, services, model):
    """A refused call is made again after a back-off, then never again."""
    with listening(HTTPServer(("127.0.0.1", 0), Listener)) as server:
        request = submit(api, callback_url=f"http://127.0.0.1:{server.server_port}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        assert deliver_callbacks(services) == 0
        assert deliver_callbacks(services) == 0
        assert len(Listener.calls) == 1
        with services.db.transaction() as session:
            (entry,) = session.scalars(select(Outbox))
            assert entry.next_at > datetime.now(UTC)
            entry.next_at = datetime.now(UTC)
        assert deliver_callbacks(services) == 1
        assert deliver_callbacks(services) == 0
    assert [c["id"] for c in Listener.calls] == [request["id"]] * 2
    assert Listener.calls[0]["status"] == "cancelled"
    secret = api.get("/v1/api-keys/self/webhook-secret").json()["webhook_secret"]
    for body, headers in Listener.bodies:
        assert Webhook(secret).verify(body, headers)["id"] == request["id"]
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body + b" ", headers)
    assert len({headers["webhook-id"] for _, headers in Listener.bodies}) == 1  # the same message, told again
    other = api.post("/v1/api-keys", json={"name": "other", "scopes": ["submit"]}).json()["webhook_secret"]
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(*Listener.bodies[0])


INSIDE = (
    "127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1", "192.168.1.1",
    "100.64.0.1", "224.0.0.1", "fd00::1", "2002:7f00:1::", "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1", "::ffff:0:127.0.0.1", "::7f00:1", "fec0::1", "192.88.99.1",
)  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_callbacks_do_not_go_inside(address, monkeypatch):
    """By address or by a name that resolves to it, also if only one of its addresses is inside."""
    assert not is_public_address(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), seconds=5, allow_private=False)
    told = [(0, 0, 0, "", (found, 9)) for found in ("93.184.216.34", address)]

    async def resolve(*_, **__):
        return told

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", "http://example.org:9/", {}, b"{}"), seconds=5, allow_private=False)


def test_an_allow_list_opens_a_network_and_nothing_else(monkeypatch):
    """What is on it is called, what is beside it is not."""
    called = []

    async def connect(_, host, *__):
        called.append(host)
        raise httpcore.ConnectError("nobody there")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    allowed = {"seconds": 5, "allow_private": False, "allow": ["10.2.0.0/16", "fd00::/8"]}
    for host in ("10.2.3.4", "[fd00::7]"):
        with pytest.raises(httpcore.ConnectError):
            send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), **allowed)
    for host in ("10.3.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(RefusedTarget):
            send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), **allowed)
    assert called == ["10.2.3.4", "fd00::7"]


def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch):
    """What was looked at is what is connected to: a second look-up, which would say something else, is not made."""
    asked, connected = [], []

    async def resolve(_, host, port, **__):
        asked.append(host)
        return [(0, 0, 0, "", ("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port))]

    async def connect(_, host, *__):
        connected.append(host)
        raise httpcore.ConnectError("no way out of here")

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(httpcore.ConnectError):
        send(OutgoingCall("POST", "http://rebind.example:9/", {}, b"{}"), seconds=5, allow_private=False)
    assert (asked, connected) == (["rebind.example"], ["93.184.216.34"])


class Elsewhere(BaseHTTPRequestHandler):
    """A receiver that sends callers on to where it would like them to go."""

    seen: list[str] = []  # noqa: RUF012

    def do_POST(self):
        """Redirect."""
        self.seen.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", "/inside")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_a_redirect_is_not_followed(api, services, model):
    """It is no success, and nobody goes where it points."""
    with listening(HTTPServer(("127.0.0.1", 0), Elsewhere)) as server:
        request = submit(api, callback_url=f"http://127.0.0.1:{server.server_port}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        assert deliver_callbacks(services) == 0
    assert Elsewhere.seen == ["/cb"]


def test_a_database_error_shows_no_parameters(database_url):
    """SQLAlchemy's message hides what was bound."""
    from service.db.session import Database

    database = Database(database_url)
    with pytest.raises(DataError) as caught, database.transaction() as session:
        session.execute(text("SELECT 1 / 0 WHERE :name = :name"), {"name": "Zoraida Quill"})
    assert "Zoraida" not in str(caught.value)
    database.close()


def test_the_app_survives_a_lost_database_connection(api, services, model, database_url):
    """Killed server connections are replaced; nothing answers 500."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
    assert api.get(REQUESTS).status_code in (200, 503)
    assert api.get(REQUESTS).status_code == 200
