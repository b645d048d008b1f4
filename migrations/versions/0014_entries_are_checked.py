"""The log takes readable entries only, from each process what it may say; compute moves only requests of its jobs"""

from alembic import op

revision = "0014"
down_revision = "0013"

# What a session is limited to: null for control workers, operators and the schema's owner. `to_regrole` is null for a
# role that nobody made.
PROCESS = """
CREATE FUNCTION unlearnd_process() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT CASE
        WHEN pg_has_role(session_user, to_regrole('unlearnd_app'), 'USAGE') THEN NULL
        WHEN pg_has_role(session_user, to_regrole('unlearnd_control'), 'USAGE') THEN NULL
        WHEN pg_has_role(session_user, to_regrole('unlearnd_compute'), 'USAGE') THEN 'compute'
        WHEN pg_has_role(session_user, to_regrole('unlearnd_api'), 'USAGE') THEN 'api'
    END
$$
"""
# Whether an entry is canonical is for its readers to check: they go on behind one that is not.
CHECK = """
    IF octet_length(new_entry) > 65536 OR new_entry IS NOT JSON OBJECT WITH UNIQUE KEYS THEN
        RAISE EXCEPTION 'an entry of the log is a JSON object of 64 KiB at most' USING ERRCODE = 'check_violation';
    END IF;
    given := convert_from(new_entry, 'UTF8')::jsonb;
    IF coalesce(jsonb_typeof(given -> 'kind'), '') <> 'string' OR coalesce(jsonb_typeof(given -> 'at'), '') <> 'string'
    THEN
        RAISE EXCEPTION 'an entry of the log has a kind and a time' USING ERRCODE = 'check_violation';
    END IF;
    process := unlearnd_process();
    IF process = 'compute'
        AND given ->> 'kind' NOT IN ('job.thresholds', 'job.quarantined', 'job.split', 'requests.rejected')
        OR process = 'api'
        AND given ->> 'kind' ~ '^(job\\.(?!(quarantined|cancelled)$)|log\\.|version\\.(published|adopted)$)'
    THEN
        RAISE EXCEPTION 'this process does not say this in the log' USING ERRCODE = 'insufficient_privilege';
    END IF;
"""
AUDIT_APPEND = """
CREATE OR REPLACE FUNCTION audit_append(new_entry bytea) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE next_index bigint; {declared}
BEGIN
    {check}
    PERFORM pg_advisory_xact_lock(7310579);
    SELECT coalesce(max(a.index) + 1, 0) INTO next_index FROM audit_entries a;
    INSERT INTO audit_entries (index, entry, leaf_hash)
    VALUES (next_index, new_entry, sha256('\\x00'::bytea || new_entry));
    RETURN next_index;
END $$
"""
REGISTERED_ONLY = """
CREATE FUNCTION versions_registered_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF unlearnd_process() = 'api' THEN
        RAISE EXCEPTION 'the API registers models; it publishes no version' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER versions_registered_only BEFORE INSERT ON versions
FOR EACH ROW WHEN (NEW.number <> 0) EXECUTE FUNCTION versions_registered_only()
"""
# Compute takes requests that a job holds up to their tests, ends them without success, or puts them back as parts of a
# split job. Every other request, and every other end, is for control and the API.
COMPUTED_ONLY = """
CREATE FUNCTION requests_computed_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.status IN ('batched', 'unlearning', 'verifying') AND OLD.job_id IS NOT NULL AND (
        NEW.status IN ('batched', 'unlearning', 'verifying', 'rejected', 'failed') AND NEW.job_id = OLD.job_id
        OR NEW.status = 'pending' AND NEW.job_id IS NULL AND NEW.split_job_id = OLD.job_id
    )) IS NOT TRUE THEN
        RAISE EXCEPTION 'a compute worker changes requests of its jobs alone, and completes none'
        USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER requests_computed_only BEFORE UPDATE ON deletion_requests
FOR EACH ROW WHEN (unlearnd_process() = 'compute') EXECUTE FUNCTION requests_computed_only()
"""


def upgrade() -> None:
    op.execute(PROCESS)
    op.execute(AUDIT_APPEND.format(declared="given jsonb; process text;", check=CHECK))
    op.execute(REGISTERED_ONLY)
    op.execute(COMPUTED_ONLY)


def downgrade() -> None:
    op.execute("DROP TRIGGER requests_computed_only ON deletion_requests")
    op.execute("DROP FUNCTION requests_computed_only()")
    op.execute("DROP TRIGGER versions_registered_only ON versions")
    op.execute("DROP FUNCTION versions_registered_only()")
    op.execute(AUDIT_APPEND.format(declared="", check=""))
    op.execute("DROP FUNCTION unlearnd_process()")
