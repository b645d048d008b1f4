"""What a compute worker that was taken over may not do with its login: run code, forge, put off, pass texts on."""

import contextlib
import json
from dataclasses import fields
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from service.db.limit_tables import CallbackLane
from service.db.log_tables import AuditEntry
from service.db.tables import Job
from service.domain.disclosure import LIMITS, MEANS, PUBLIC, Contributors
from service.domain.report import AttackFinding, BaselineSummary, EarlierRequests, Means, Utility
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import fail_attempt, hold_job
from service.local import postgres
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_rejected, store_stage
from tests.service.conftest import only_model, submit
from tests.service.jobs import claim, to_certify

TEXT = "Vera Victim, 12 Sample Street"
AT = "to_char(now(), 'YYYY-MM-DD\"T\"HH24:00:00+00:00')"


def entry(kind: str, members: str, at: str = AT) -> str:
    """The statement that appends an entry with these members to the log."""
    built = f"json_build_object('kind', '{kind}', 'at', {at}, {members})"
    return f"SELECT audit_append(convert_to({built}::text, 'UTF8'))"


def run(session, statement: str) -> None:
    """A statement as it stands: its colons name no parameters."""
    session.connection().exec_driver_sql(statement)


def refused(parts, *statements: str) -> None:
    """The last statement is refused to a login for its lack of privilege."""
    with pytest.raises(DBAPIError) as caught, parts.db.transaction() as session:
        for statement in statements:
            run(session, statement)
    assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), statements[-1]
    assert caught.value.statement == statements[-1]


OURS = """SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')"""


def test_every_function_looks_at_temporary_objects_last(services):
    """A session's own temporary table or view would otherwise stand for ours, and its code would run as the owner."""
    with services.db.reading() as session:
        assert len(session.scalars(text(OURS)).all()) > 5
        pinned = "coalesce('search_path=public, pg_temp' = ANY (proconfig), false)"
        assert session.scalars(text(f"{OURS} AND NOT {pinned}")).all() == []


def test_no_process_makes_temporary_objects(services):
    """A migrated database allows it to nobody but its owner. (Databases of tests are copies without such rights.)"""
    for login in (postgres.APP_ROLE, *postgres.LOGINS.values()):
        may = f"SELECT has_database_privilege('{login}', 'template_unlearnd', 'TEMPORARY')"
        with services.db.reading() as session:
            assert session.scalar(text(may)) is False, login


EVIL = """CREATE FUNCTION pg_temp.evil() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
IF current_user <> session_user THEN EXECUTE 'CREATE TABLE public.taken_over ()'; END IF; RETURN 'x'; END $$"""
FORGED = entry("job.split", f"'job', 'x', 'reopened', json_build_array('{TEXT}')")
ATTACKS = {
    "table": [
        "CREATE TEMP TABLE jobs (id text)",
        "INSERT INTO pg_temp.jobs VALUES ('x')",
        "CREATE TEMP TABLE deletion_requests (ref text, job_id text, split_job_id text, status text)",
        f"INSERT INTO pg_temp.deletion_requests VALUES ('{TEXT}', 'x', 'x', 'pending')",
        "GRANT SELECT ON pg_temp.jobs, pg_temp.deletion_requests TO PUBLIC",
        FORGED,
    ],
    "view": [
        EVIL,
        "CREATE TEMP VIEW jobs AS SELECT pg_temp.evil() AS id",
        "GRANT SELECT ON pg_temp.jobs TO PUBLIC",
        entry("job.split", "'job', 'x'"),
    ],
    "notification": [
        "CREATE TEMP TABLE deletion_requests AS SELECT * FROM public.deletion_requests",
        "UPDATE pg_temp.deletion_requests SET status = 'rejected'",
        "INSERT INTO outbox (id, request_id, status, api_key_id) SELECT gen_random_uuid(), id, status, api_key_id"
        " FROM pg_temp.deletion_requests",
    ],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_temporary_object_stands_for_no_table(services, as_process, job, attack):
    """Even where the server lets a login make some: nothing is forged, and no code of it runs as the owner."""
    with services.db.reading() as session:
        before = session.scalar(select(func.count()).select_from(AuditEntry))
    with contextlib.suppress(DBAPIError), as_process("compute").db.transaction() as session:
        for statement in ATTACKS[attack]:
            run(session, statement)
    with services.db.reading() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == before
        assert session.scalar(text("SELECT to_regclass('public.taken_over')")) is None
        assert session.scalar(text("SELECT count(*) FROM outbox")) == 0


IMPLIED = {"target": "0", "api_key_id": "api_key_id", "lane": "callback_lanes[1]", "next_at": "now()"}


def notification(**values: str) -> str:
    """The statement that announces the present status of every request, with these values instead of the implied."""
    columns = IMPLIED | values
    names, chosen = ", ".join(columns), ", ".join(columns.values())
    into = f"INSERT INTO outbox (id, request_id, status, {names})"
    return f"{into} SELECT gen_random_uuid(), id, status, {chosen} FROM deletion_requests"


@pytest.fixture
def notified(api, services, model):
    """The id of a job with a request whose submitter is called back."""
    submit(api, callback_url="https://hooks.example/x")
    return batch_requests(services, only_model(services))


NOT_IMPLIED = [
    {"next_at": "'infinity'"},
    {"next_at": "now() + interval '1 minute'"},
    {"next_at": "NULL"},
    {"api_key_id": "gen_random_uuid()"},
    {"api_key_id": "NULL"},
    {"lane": "7"},
    {"lane": "NULL"},
    {"target": "1"},
    {"target": "-2"},
    {"target": "-1"},
    {"target": "-1", "api_key_id": "NULL", "lane": "0", "next_at": "'infinity'"},
    {"claimed_until": "'infinity'"},
    {"attempts": "25"},
    {"created_at": "'infinity'"},
    {"created_at": "now() - interval '5 days'"},
]


def test_a_notification_is_what_its_request_implies(services, as_process, notified, subtests):
    """So it takes no turn of another key, is sent now or after its lane's pause, and does not hold up a purge."""
    own = as_process("compute")
    for values in NOT_IMPLIED:
        with subtests.test(str(values)):
            refused(own, notification(**values))
    pause = func.now() + timedelta(hours=1)
    with services.db.transaction() as session:
        lane = session.scalar(text("SELECT callback_lanes[1] FROM deletion_requests"))
        session.add(CallbackLane(lane=lane, failures=9, next_at=pause))
    paused = "(SELECT next_at FROM callback_lanes)"
    refused(own, notification(next_at=f"{paused} + interval '1 second'"))
    with own.db.transaction() as session:
        for allowed in ({}, {"next_at": paused}, {"target": "-1", "api_key_id": "NULL", "lane": "0"}):
            run(session, notification(**allowed))


CHANGES = ["claimed_until = 'infinity'", "attempts = 25", "api_key_id = gen_random_uuid()", "lane = 7", "target = 0",
     "created_at = 'infinity'", "next_at = now() - interval '1 hour'"]  # fmt: skip


def test_no_notification_is_changed_but_an_alert_that_is_due_again(as_process, services, notified, subtests):
    """Callbacks are control's. An alert may be sent anew."""
    with services.db.transaction() as session:
        run(session, notification())
        run(session, notification(target="-1", api_key_id="NULL", lane="0"))
    own = as_process("compute")
    for changes in CHANGES:
        with subtests.test(changes):
            refused(own, f"UPDATE outbox SET {changes} WHERE target = 0")
            if "next_at" not in changes:
                refused(own, f"UPDATE outbox SET {changes} WHERE target < 0")
    with own.db.transaction() as session:
        session.execute(text("UPDATE outbox SET next_at = now(), created_at = now() WHERE target < 0"))


JOB, REF = "'job', (SELECT id FROM jobs ORDER BY seq LIMIT 1)", "(SELECT ref FROM deletion_requests LIMIT 1)"
REF_IN = "(SELECT ref FROM deletion_requests WHERE status = '{}' LIMIT 1)"
THRESHOLDS = f"{JOB}, 'thresholds', repeat('0', 64), 'parameters', repeat('0', 64), 'before', NULL"
REJECTED = f"{JOB}, 'at_stage', 'unlearn', 'refs', json_build_array({REF})"
SPLIT, QUARANTINED = f"{JOB}, 'reopened', json_build_array({REF})", f"{JOB}, 'reason', 'test'"
NOT_HAPPENED = [
    ("job.quarantined", QUARANTINED),
    ("requests.rejected", REJECTED),
    ("job.split", SPLIT),
    ("job.quarantined", JOB),
    ("requests.rejected", f"{JOB}, 'at_stage', 'unlearn'"),
    ("job.split", JOB),
    ("job.thresholds", JOB),
]


def test_an_entry_about_what_has_not_happened_is_refused(as_process, job, subtests):
    """The request is neither rejected nor split, its job not given up; and no entry lacks what it is about."""
    own = as_process("compute")
    for kind, members in NOT_HAPPENED:
        with subtests.test(kind, members=members):
            refused(own, entry(kind, members))


def test_an_entry_is_of_now(as_process, job):
    """Its time is that of the transaction, rounded down to the hour."""
    own = as_process("compute")
    for at in ("'2026-01-01T00:00:00+00:00'", "'2100-01-01T00:00:00+00:00'", "'2026'"):
        refused(own, entry("job.thresholds", THRESHOLDS, at=at))
    with own.db.transaction() as session:
        run(session, entry("job.thresholds", THRESHOLDS))


def test_an_entry_is_of_its_own_transaction(api, services, as_process, model):
    """What was rejected, split or given up once is not said again: its requests may have ended otherwise since."""
    own = as_process("compute")
    for _ in range(3):
        submit(api)
    job_id = batch_requests(services, only_model(services))
    with hold_job(own, job_id, COMPUTE_STAGES) as lease:
        store_rejected(own, job_id, lease.fence, {0: "too_short"})
        refused(own, entry("requests.rejected", REJECTED.replace(REF, REF_IN.format("rejected"))))
        fail_attempt(own, lease, "test", permanent=True)
    refused(own, entry("job.split", SPLIT.replace(REF, REF_IN.format("pending"))))
    refused(own, entry("job.quarantined", QUARANTINED))


STAGES = ["UPDATE jobs SET stage = 'quarantined'", "UPDATE jobs SET stage = 'unlearn'", "UPDATE jobs SET fence = 9"]


@pytest.mark.parametrize("published", [False, True], ids=["to be certified", "published"])
def test_a_job_that_control_has_taken_over_is_not_changed(services, as_process, job, published):
    """Nor one that has ended: its requests would be open again, says the log."""
    _, job_id = job
    to_certify(services, job_id)
    if published:
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify_job(services, job_id, lease.fence)
            publish_version(services, job_id, lease.fence)
    own = as_process("compute")
    for statement in STAGES:
        refused(own, statement)


EVENT = "INSERT INTO job_events (job_id, kind, data) SELECT id, '{kind}', '{data}' FROM jobs"
TEXTS = [
    f"UPDATE deletion_requests SET reason = '{TEXT}'",
    f"UPDATE deletion_requests SET verdict = '{TEXT}'",
    f"UPDATE deletion_requests SET status = 'rejected', finished_at = now(), reason = '{TEXT}'",
    f"UPDATE jobs SET reason = '{TEXT}'",
    f"UPDATE jobs SET outcome = '{TEXT}'",
    f"""UPDATE jobs SET metrics = '{{"utility": "{TEXT}"}}'""",
    f"""UPDATE jobs SET metrics = '{{"{TEXT}": 1}}'""",
    f"""UPDATE jobs SET report = '{{"findings": {{"reason": "{TEXT}"}}}}'""",
    EVENT.format(kind=TEXT, data="{}"),
    EVENT.format(kind="done", data=f'{{"reason": "{TEXT}"}}'),
    EVENT.format(kind="done", data=f'{{"{TEXT}": 1}}'),
    EVENT.format(kind="epoch", data=f'{{"el": {{"el": ["{TEXT}"]}}}}'),
    EVENT.format(kind="epoch", data=f'{{"el": {{"{TEXT}": 1}}}}'),
    EVENT.format(kind="epoch", data='{"el": ' + "1" * 100_000 + "}"),
]


def test_no_text_of_one_submitter_gets_to_another(as_process, job, subtests):
    """Reasons, verdicts, numbers and events have listed names and forms."""
    own = as_process("compute")
    for number, statement in enumerate(TEXTS):
        with subtests.test(number=number):
            refused(own, statement)


def test_every_number_that_is_measured_has_a_listed_name(services):
    """Or no compute worker could store it."""
    reports = (AttackFinding, BaselineSummary, Contributors, EarlierRequests, Means, Utility)
    names = {part.name for report in reports for part in fields(report)} - {"thresholds", "sequences"}
    names |= {"rank", "learning_rate", "neighbours_lost", "samples_lost", "repairs", "keeps"}  # of an epoch
    given = json.dumps(dict.fromkeys(names | {"attacks"} | (PUBLIC - {"epochs", "version"}) | LIMITS | MEANS, 1.0))
    with services.db.reading() as session:
        assert session.scalar(text("SELECT unlearnd_measured(CAST(:given AS jsonb))"), {"given": given})


def test_a_request_ends_when_it_ends(as_process, job):
    """It would be purged at once otherwise, or never."""
    own = as_process("compute")
    for at in ("'2001-01-01'", "'infinity'", "NULL"):
        refused(own, f"UPDATE deletion_requests SET status = 'rejected', finished_at = {at}")


def test_what_an_earlier_release_stored_stays_as_it_is(services, as_process, job):
    """Its words are another form; a job of then goes on."""
    _, job_id = job
    with services.db.transaction() as session:
        session.execute(update(Job).values(reason="an old reason", metrics={"an old name": "of old"}))
        session.execute(text("UPDATE deletion_requests SET reason = 'an old reason'"))
    own = as_process("compute")
    store_stage(own, job_id, claim(own, job_id), Stage.UNLEARN)
