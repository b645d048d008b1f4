"""The log goes on in one database only: not in a promoted standby, a restored backup or a copy before `reconcile`"""

import sqlalchemy as sa
from alembic import context, op

revision = "0026"
down_revision = "0025"

# A promotion and a recovery to a point in time begin another timeline; a dump is restored into another cluster or
# database. See PostgreSQL's documentation, 26.3.5 (timelines).
DATABASE_HOME = """
CREATE FUNCTION database_home() RETURNS text LANGUAGE sql VOLATILE SET search_path = public, pg_temp AS $$
    SELECT concat_ws('/',
        (SELECT system_identifier FROM pg_control_system()),
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END)
$$
"""
SETTLE = """
CREATE FUNCTION log_settle(entries bigint, refs text[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    IF unlearnd_process() IS NOT NULL THEN
        RAISE EXCEPTION 'this process does not settle the log' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM pg_advisory_xact_lock(7310579);
    UPDATE log_home SET brought_back = brought_back + entries, lost = lost || refs,
        moved_at = now(), home = database_home()
    WHERE home <> database_home() OR entries > 0 OR refs <> '{}';
END $$;
CREATE FUNCTION log_move_seen() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF unlearnd_process() IS NOT NULL THEN
        RAISE EXCEPTION 'an operator says this' USING ERRCODE = 'insufficient_privilege';
    END IF;
    UPDATE log_home SET brought_back = 0, lost = '{}', moved_at = NULL;
END $$
"""
HOME = """
    IF (SELECT home FROM log_home) IS DISTINCT FROM database_home() THEN
        RAISE EXCEPTION 'the log waits for `unlearnd reconcile`: this database was promoted, restored or copied'
        USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
"""


def _replace_append(declared: str, check: str, most_bytes: int) -> None:
    """Write `audit_append` anew, with a check after its lock."""
    module = context.script.get_revision("0014").module
    checked = module.CHECK.replace("> 65536", f"> {most_bytes}")
    locked = "PERFORM pg_advisory_xact_lock(7310579);"
    op.execute(module.AUDIT_APPEND.format(declared=declared, check=checked).replace(locked, locked + check))


def upgrade() -> None:
    op.create_table(
        "log_home",
        sa.Column("one", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("home", sa.Text(), nullable=False, comment="cluster, database and timeline in which the log goes on"),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True, comment="null: an operator has seen it"),
        sa.Column("brought_back", sa.BigInteger(), server_default="0", nullable=False, comment="entries of the log"),
        sa.Column(
            "lost",
            sa.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="refs of accepted requests that the database has lost",
        ),
        sa.CheckConstraint("one", name=op.f("ck_log_home_one")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_log_home")),
    )
    op.execute(DATABASE_HOME)
    op.execute(SETTLE)
    op.execute("INSERT INTO log_home (home) VALUES (database_home())")
    _replace_append("given jsonb; process text;", HOME, 65535)


def downgrade() -> None:
    _replace_append("given jsonb; process text;", "", 65536)
    op.execute("DROP FUNCTION log_move_seen()")
    op.execute("DROP FUNCTION log_settle(bigint, text[])")
    op.execute("DROP FUNCTION database_home()")
    op.drop_table("log_home")
