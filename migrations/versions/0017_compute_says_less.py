"""Compute says in the log and in notifications only what its jobs bring about"""

from alembic import op

revision = "0017"
down_revision = "0016"

# Members of an entry of a compute worker, and the form of each: no text of anybody fits in.
FORM = """
CREATE FUNCTION unlearnd_computed_entry(given jsonb) RETURNS boolean LANGUAGE sql STABLE SET search_path = public AS $$
    SELECT coalesce(bool_and(CASE member.key
        WHEN 'kind' THEN true
        WHEN 'at' THEN value #>> '{}' ~ '^[0-9T:+-]{1,40}$'
        WHEN 'job' THEN EXISTS (SELECT FROM jobs WHERE id::text = value #>> '{}')
        WHEN 'reason' THEN value #>> '{}' ~ '^[A-Za-z_]{1,64}$'
        WHEN 'at_stage' THEN value #>> '{}' ~ '^[a-z]{1,16}$'
        WHEN 'thresholds' THEN value #>> '{}' ~ '^[0-9a-f]{64}$'
        WHEN 'parameters' THEN value #>> '{}' ~ '^[0-9a-f]{64}$'
        WHEN 'before' THEN jsonb_typeof(value) = 'null' OR (
            SELECT bool_and(part.key = 'size' AND part.value ~ '^[0-9]{1,18}$'
                OR part.key = 'root' AND part.value ~ '^[0-9A-Za-z+/=]{1,88}$')
            FROM jsonb_each_text(CASE jsonb_typeof(value) WHEN 'object' THEN value ELSE '{"":""}' END) AS part)
        WHEN 'refs' THEN (
            SELECT bool_and(EXISTS (SELECT FROM deletion_requests AS request
                WHERE request.ref = listed AND request.job_id::text = given ->> 'job'))
            FROM jsonb_array_elements_text(value) AS listed)
        WHEN 'reopened' THEN (
            SELECT bool_and(EXISTS (SELECT FROM deletion_requests AS request
                WHERE request.ref = listed AND request.split_job_id::text = given ->> 'job'))
            FROM jsonb_array_elements_text(value) AS listed)
        ELSE false
    END), false) AND given ? 'job'
    FROM jsonb_each(given) AS member (key, value)
$$
"""
CHECKED = """
CREATE FUNCTION entries_computed_only() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
    IF unlearnd_computed_entry(convert_from(NEW.entry, 'UTF8')::jsonb) IS NOT TRUE THEN
        RAISE EXCEPTION 'a compute worker says of its jobs what happened, and nothing else'
        USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER entries_computed_only BEFORE INSERT ON audit_entries
FOR EACH ROW WHEN (unlearnd_process() = 'compute') EXECUTE FUNCTION entries_computed_only()
"""
# A notification announces the status that the request has. No compute worker gives one up, puts it off or ends it.
NOTIFIED = """
CREATE FUNCTION notifications_computed_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (
        NEW.delivered_at IS NULL AND NEW.next_at IS NOT NULL AND (NEW.target >= 0 OR NEW.next_at <= now())
        AND EXISTS (
            SELECT FROM deletion_requests AS request WHERE request.id = NEW.request_id AND request.status = NEW.status
            AND request.status IN ('batched', 'unlearning', 'verifying', 'rejected', 'failed')
        )
        AND (TG_OP = 'INSERT' OR NEW.request_id = OLD.request_id AND NEW.status = OLD.status)
    ) IS NOT TRUE THEN
        RAISE EXCEPTION 'a compute worker announces what has happened to requests of its jobs, and nothing else'
        USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER notifications_computed_only BEFORE INSERT OR UPDATE ON outbox
FOR EACH ROW WHEN (unlearnd_process() = 'compute') EXECUTE FUNCTION notifications_computed_only()
"""


def upgrade() -> None:
    op.execute(FORM)
    op.execute(CHECKED)
    op.execute(NOTIFIED)


def downgrade() -> None:
    op.execute("DROP TRIGGER notifications_computed_only ON outbox")
    op.execute("DROP FUNCTION notifications_computed_only()")
    op.execute("DROP TRIGGER entries_computed_only ON audit_entries")
    op.execute("DROP FUNCTION entries_computed_only()")
    op.execute("DROP FUNCTION unlearnd_computed_entry(jsonb)")
