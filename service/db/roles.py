"""Database roles: what each process of the service may do. `unlearnd migrate` makes them and grants their rights.

unlearnd_app       operators' commands, and every process of an installation with one login
unlearnd_api       the HTTP API: takes, retries and purges requests, registers models and corpora, makes API keys
unlearnd_control   control workers: everything behind the intake, but no API key, no new request and no new model
unlearnd_compute   compute workers: the state and the report of jobs, and how far requests are while they compute

Nobody but the schema's owner writes into the log: `audit_append` does, which checks what each process may say there.
A login of a process is a member of one of these roles.
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]
APP, API, CONTROL, COMPUTE = ROLES = ("unlearnd_app", "unlearnd_api", "unlearnd_control", "unlearnd_compute")
ALL = "INSERT, UPDATE, DELETE"
# Table -> what the API, control workers and compute workers may do beyond reading it; None: not even read it.
RIGHTS: dict[str, tuple[str | None, str | None, str | None]] = {
    "alembic_version": ("", "", ""),
    "api_keys": ("INSERT, UPDATE (revoked_at)", "", None),
    "approvals": (ALL, ALL, None),
    "audit_entries": ("", "", ""),
    "callback_lanes": (ALL, ALL, ""),
    "certificates": ("", ALL, None),
    "compute_workers": ("", "DELETE", ALL),
    "console_sessions": ("INSERT, DELETE", None, None),
    "corpora": (ALL, ALL, None),
    "corpus_records": (ALL, ALL, None),
    "deletion_requests": (
        "INSERT, UPDATE",
        "UPDATE",
        "UPDATE (status, verdict, reason, finished_at, job_id, split_job_id, split_part)",
    ),
    "downloads": ("INSERT", ALL, None),
    "job_events": ("INSERT, UPDATE (data)", ALL, "INSERT"),
    "jobs": (
        # A withdrawal stops the jobs that start from a version, and a purge redacts numbers.
        "UPDATE (stage, reason, owner, lease_expires_at, woken_at, finished_at, metrics, report)",
        ALL,
        "UPDATE (stage, outcome, reason, owner, lease_expires_at, fence, attempts, losses, outgrew, steps, progress,"
        " epoch, metrics, report, thresholds_index, progress_at, woken_at, not_before, started_at, finished_at)",
    ),
    "key_epochs": ("INSERT, UPDATE (has_purged)", ALL, ""),
    "log_home": ("", "", ""),
    "models": ("INSERT, UPDATE (policy, policy_version, latest)", "UPDATE", ""),
    "outbox": ("INSERT, UPDATE", ALL, "INSERT, UPDATE"),
    "policy_versions": ("INSERT", "", None),
    "preview_counts": (ALL, "", None),
    "recheck_shards": (
        "",
        ALL,
        "UPDATE (owner, lease_expires_at, fence, attempts, losses, outgrew, not_before, measured, came_back,"
        " reason, finished_at)",
    ),
    "rechecks": ("", ALL, ""),
    "records": (ALL, ALL, ""),
    "rejections": (ALL, "", None),
    "request_tallies": ("", ALL, ""),
    "used_tokens": (ALL, "", None),
    "versions": ("INSERT, UPDATE (metrics, withdrawn_at, withdrawn_reason)", "INSERT, UPDATE", ""),
}
CREATE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} NOLOGIN; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT USAGE ON SCHEMA public TO {role};
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role};
GRANT EXECUTE ON FUNCTION audit_append(bytea) TO {role};
"""
GRANT_APP = """
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO unlearnd_app;
REVOKE ALL ON audit_entries, log_home, alembic_version FROM PUBLIC, unlearnd_app;
GRANT SELECT ON audit_entries, log_home, alembic_version TO unlearnd_app;
REVOKE ALL ON FUNCTION audit_append(bytea), log_settle(bigint, text[]), log_move_seen() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION log_settle(bigint, text[]), log_move_seen() TO unlearnd_app, unlearnd_control;
"""
# No process makes temporary objects, which other code could take for ours. The right is the database's: a restored one
# has it anew. Who owns the schema alone, and not the database, may not take it away: each function looks there last.
REVOKE_TEMPORARY = """
DO $$ BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$
"""


def grant_rights(connection: Connection) -> None:
    """Make the roles that are missing, and give each exactly its rights."""
    for role in ROLES:
        connection.execute(CREATE.format(role=role))
    connection.execute(GRANT_APP)
    connection.execute(REVOKE_TEMPORARY)
    for table, rights in RIGHTS.items():
        for role, writes in zip((API, CONTROL, COMPUTE), rights, strict=True):
            if writes is not None:
                connection.execute(f"GRANT {', '.join(filter(None, ['SELECT', writes]))} ON {table} TO {role}")


def create_logins(connection: Connection, logins: Mapping[str, str]) -> None:
    """Create or alter the logins of these URLs (role -> URL), and make each a member of its role alone.

    A URL without a user, or with the schema owner's, makes none.
    """
    for role, url in logins.items():
        login = conninfo_to_dict(url) if url else {}
        if login.get("user") in (None, connection.info.user):
            continue
        user, password = str(login["user"]), login.get("password")
        exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).fetchone() is not None
        verb, name = sql.SQL("ALTER" if exists else "CREATE"), sql.Identifier(user)
        connection.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, name, sql.Literal(password)))
        for other in ROLES:
            statement = "GRANT {} TO {}" if other == role else "REVOKE {} FROM {}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(other), name))
