"""Compute says what has happened, in listed words; temporary objects stand for none of ours"""

from collections.abc import Iterable

from alembic import context, op

revision = "0018"
down_revision = "0017"

# Without `pg_temp` at the end, PostgreSQL looks for tables among a session's temporary objects first.
PINNED = """
DO $$ DECLARE ours regprocedure; BEGIN
    FOR ours IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
        AND pg_has_role(proowner, 'USAGE')
    LOOP EXECUTE format('ALTER ROUTINE %s SET search_path = public, pg_temp', ours); END LOOP;
END $$
"""
# Members of an entry of a compute worker, and the form of each: no text of anybody fits in. Its time is rounded down to
# the hour; clocks differ.
FORM = """
CREATE FUNCTION unlearnd_entry_form(given jsonb) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT bool_and(coalesce(CASE member.key
        WHEN 'kind' THEN true
        WHEN 'at' THEN CASE WHEN value #>> '{}' ~ '^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}[+]00:00$'
            THEN (value #>> '{}')::timestamptz BETWEEN now() - interval '2 hours' AND now() + interval '1 hour' END
        WHEN 'job' THEN value #>> '{}' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        WHEN 'reason' THEN value #>> '{}' ~ '^[A-Za-z_]{1,64}$'
        WHEN 'at_stage' THEN value #>> '{}' = 'unlearn'
        WHEN 'thresholds' THEN value #>> '{}' ~ '^[0-9a-f]{64}$'
        WHEN 'parameters' THEN value #>> '{}' ~ '^[0-9a-f]{64}$'
        WHEN 'before' THEN jsonb_typeof(value) = 'null' OR (
            SELECT bool_and(part.key = 'size' AND part.value ~ '^[0-9]{1,18}$'
                OR part.key = 'root' AND part.value ~ '^[0-9A-Za-z+/=]{1,88}$')
            FROM jsonb_each_text(CASE jsonb_typeof(value) WHEN 'object' THEN value ELSE '{"":""}' END) AS part)
        WHEN 'refs' THEN given ->> 'kind' = 'requests.rejected'
        WHEN 'reopened' THEN given ->> 'kind' = 'job.split'
    END, false))
    FROM jsonb_each(given) AS member (key, value)
$$
"""
# `xmin` names the transaction that wrote the row: an entry is about what its own transaction has done.
HAPPENED = """
CREATE FUNCTION unlearnd_has_happened(given jsonb, of_job uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT CASE given ->> 'kind'
        WHEN 'job.thresholds' THEN given ?& '{thresholds,parameters}'
            AND EXISTS (SELECT FROM jobs WHERE id = of_job AND stage IN ('queued', 'unlearn', 'merge', 'verify'))
        WHEN 'job.quarantined' THEN EXISTS (
            SELECT FROM jobs WHERE id = of_job AND stage = 'quarantined' AND reason = given ->> 'reason'
            AND xmin = pg_current_xact_id()::xid)
        WHEN 'requests.rejected' THEN (
            SELECT bool_and(EXISTS (SELECT FROM deletion_requests
                WHERE ref = listed AND job_id = of_job AND status = 'rejected' AND xmin = pg_current_xact_id()::xid))
            FROM jsonb_array_elements_text(given -> 'refs') AS listed)
        WHEN 'job.split' THEN (
            SELECT bool_and(EXISTS (SELECT FROM deletion_requests
                WHERE ref = listed AND split_job_id = of_job AND status = 'pending'
                AND xmin = pg_current_xact_id()::xid))
            FROM jsonb_array_elements_text(given -> 'reopened') AS listed)
    END
$$
"""
# What is measured, and what an event says: listed names, numbers and codes. A ref is a code.
MEASURED = """
CREATE FUNCTION unlearnd_measured(given jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(given::text) <= 65536 AND NOT EXISTS (
        SELECT FROM jsonb_path_query(given, '$.** ? (@.type() == "object").keyvalue().key') AS name
        WHERE name #>> '{}' <> ALL ('{
            after, attempts, before, earlier, el, el_limit, epoch, first_heldout_perplexity, forget_loss,
            heldout_excluded, heldout_perplexity, heldout_perplexity_after, heldout_perplexity_before,
            heldout_ratio, largest_share, limits, loss, ma, ma_limit, max_ratio, max_total_ratio, memorised,
            met, outcome, perplexity, progress, reason, regressed, requests, retain_excluded, retain_loss,
            retain_perplexity_after, retain_perplexity_before, retain_ratio, seconds, stage, steps,
            strength, submitters, total_ratio, utility, within_budget, within_total_budget
        }'))
    AND NOT given @? '$.** ? (@.type() == "string" && !(@ like_regex "^([A-Za-z_]{1,64}|[0-9a-f]{32})$"))'
$$
"""
CHECKED = """
CREATE FUNCTION {name}_computed_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (
        {condition}
    ) IS NOT TRUE THEN
        RAISE EXCEPTION '{refusal}' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER {name}_computed_only BEFORE {event} ON {table}
FOR EACH ROW WHEN (unlearnd_process() = 'compute') EXECUTE FUNCTION {name}_computed_only()
"""
CODE = "~ '^[A-Za-z_]{1,64}$'"
REASON = f"(NEW.reason IS NULL OR NEW.reason {CODE} OR NEW.reason IS NOT DISTINCT FROM OLD.reason)"
COMPUTED_STAGES = "'queued', 'unlearn', 'merge', 'verify'"
ENTRIES = """CASE WHEN unlearnd_entry_form(convert_from(NEW.entry, 'UTF8')::jsonb) THEN unlearnd_has_happened(
            convert_from(NEW.entry, 'UTF8')::jsonb, (convert_from(NEW.entry, 'UTF8')::jsonb ->> 'job')::uuid) END"""
# A notification announces the status that the request has, and is sent at once or after its lane's pause. No compute
# worker gives one up, puts it off or ends it. It may send an alert again.
NOTIFICATIONS = """NEW.delivered_at IS NULL AND NEW.claimed_until IS NULL AND NEW.attempts = 0
        AND NEW.created_at = now() AND EXISTS (
            SELECT FROM deletion_requests AS request WHERE request.id = NEW.request_id AND request.status = NEW.status
            AND (request.status IN ('batched', 'unlearning', 'verifying', 'rejected', 'failed')
                OR request.status = 'pending' AND request.split_job_id IS NOT NULL)
            AND CASE WHEN NEW.target = -1 THEN
                NEW.api_key_id IS NULL AND NEW.lane = 0 AND NEW.next_at = now()
            ELSE
                NEW.target BETWEEN 0 AND request.callbacks - 1 AND NEW.api_key_id = request.api_key_id
                AND NEW.lane IS NOT DISTINCT FROM request.callback_lanes[NEW.target + 1]
                AND NEW.next_at BETWEEN now() AND greatest(
                    now(), (SELECT next_at FROM callback_lanes WHERE lane = NEW.lane))
            END
        )
        AND (TG_OP = 'INSERT' OR NEW.target = -1 AND OLD.target = -1 AND NEW.request_id = OLD.request_id
            AND NEW.status = OLD.status)"""
# Compute takes requests that a job holds up to their tests, ends them without success, or puts them back as parts of a
# split job. Every other request, and every other end, is for control and the API.
REQUESTS = f"""OLD.status IN ('batched', 'unlearning', 'verifying') AND OLD.job_id IS NOT NULL AND (
            NEW.status IN ('batched', 'unlearning', 'verifying', 'rejected', 'failed') AND NEW.job_id = OLD.job_id
            OR NEW.status = 'pending' AND NEW.job_id IS NULL AND NEW.split_job_id = OLD.job_id
        )
        AND {REASON}
        AND (NEW.verdict IS NULL OR NEW.verdict IN ('PASS', 'FAIL', 'NOT_TESTED', 'NOT_PUBLISHED'))
        AND CASE WHEN NEW.status IN ('rejected', 'failed') THEN
            NEW.finished_at BETWEEN now() - interval '1 hour' AND now() + interval '1 hour'
        ELSE NEW.finished_at IS NULL END"""
# A worker of an earlier release may have stored other words in a job that is still open: they may stay.
JOBS = f"""OLD.stage IN ({COMPUTED_STAGES}) AND NEW.stage IN ({COMPUTED_STAGES}, 'certify', 'quarantined')
        AND (NEW.outcome IS NULL OR NEW.outcome IN ('passed', 'failed', 'not_memorised', 'rejected'))
        AND {REASON}
        AND (NEW.metrics = OLD.metrics OR unlearnd_measured(NEW.metrics))
        AND (NEW.report IS NULL OR NEW.report IS NOT DISTINCT FROM OLD.report OR NOT NEW.report
            @? '$.** ? (@.type() == "string" && !(@ like_regex "^[A-Za-z0-9_.:/+!-]{{0,200}}$"))')"""
EVENTS = f"""NEW.kind IN ('stage', 'thresholds', 'epoch', 'retry', 'done') AND unlearnd_measured(NEW.data)
        AND octet_length(NEW.data::text) <= 4096 AND NEW.at = now()
        AND EXISTS (SELECT FROM jobs WHERE id = NEW.job_id
            AND (stage IN ({COMPUTED_STAGES}) OR xmin = pg_current_xact_id()::xid))"""
# Name -> the table, when, what must hold, and what it says otherwise.
TRIGGERS = {
    "entries": ("audit_entries", "INSERT", ENTRIES, "says of its jobs what happened, and nothing else"),
    "notifications": ("outbox", "INSERT OR UPDATE", NOTIFICATIONS, "announces what happened to requests of its jobs"),
    "requests": ("deletion_requests", "UPDATE", REQUESTS, "changes requests of its jobs alone, and completes none"),
    "jobs": ("jobs", "UPDATE", JOBS, "changes jobs that compute, and says of them what is measured"),
    "events": ("job_events", "INSERT", EVENTS, "says in an event what is measured"),
}
OF_0017 = ("entries", "notifications", "requests")


def upgrade() -> None:
    _drop(OF_0017)
    op.execute("DROP FUNCTION unlearnd_computed_entry(jsonb)")
    for function in (FORM, HAPPENED, MEASURED):
        op.execute(function)
    for name, (table, event, condition, refusal) in TRIGGERS.items():
        refusal = f"a compute worker {refusal}"
        op.execute(CHECKED.format(name=name, table=table, event=event, condition=condition, refusal=refusal))
    op.execute(PINNED)


def downgrade() -> None:
    _drop(TRIGGERS)
    for function in ("unlearnd_entry_form(jsonb)", "unlearnd_has_happened(jsonb, uuid)", "unlearnd_measured(jsonb)"):
        op.execute(f"DROP FUNCTION {function}")
    for number, names in (("0014", ["COMPUTED_ONLY"]), ("0017", ["FORM", "CHECKED", "NOTIFIED"])):
        module = context.script.get_revision(number).module
        for name in names:
            op.execute(getattr(module, name))


def _drop(names: Iterable[str]) -> None:
    """Drop these triggers, and their functions."""
    for name in names:
        op.execute(f"DROP TRIGGER {name}_computed_only ON {TRIGGERS[name][0]}")
        op.execute(f"DROP FUNCTION {name}_computed_only()")
