"""Requests are tallied by status and day, so that no scrape counts a million rows"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"

# Each statement adds one row a group, and touches none: writers do not wait for each other. The sweep adds them up.
TALLY = """
CREATE FUNCTION tally_requests() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO request_tallies {from_new} GROUP BY 1, 2, 3, 4;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO request_tallies {from_old} GROUP BY 1, 2, 3, 4;
    ELSE
        INSERT INTO request_tallies SELECT model_id, status, held, due_on, sum(requests)
        FROM ({from_new} GROUP BY 1, 2, 3, 4 UNION ALL {from_old} GROUP BY 1, 2, 3, 4) AS changed
        GROUP BY 1, 2, 3, 4 HAVING sum(requests) <> 0;
    END IF;
    RETURN NULL;
END $$
"""
TRIGGERS = """
CREATE TRIGGER tally_inserted AFTER INSERT ON deletion_requests REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION tally_requests();
CREATE TRIGGER tally_updated AFTER UPDATE ON deletion_requests REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION tally_requests();
CREATE TRIGGER tally_deleted AFTER DELETE ON deletion_requests REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION tally_requests()
"""
GROUPS = """SELECT model_id, status, hold IS NOT NULL AS held,
    CASE WHEN status NOT IN ('completed', 'not_memorised', 'cancelled', 'rejected', 'failed')
    THEN (due_at AT TIME ZONE 'UTC')::date END AS due_on, {count} AS requests FROM {rows}"""


def upgrade() -> None:
    op.create_table(
        "request_tallies",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False, comment="waits for a search or a person"),
        sa.Column("due_on", sa.Date(), nullable=True, comment="the day of the deadline, UTC; null once it has ended"),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="below 0: so many left this group"),
    )
    new, old = (
        GROUPS.format(count=count, rows=rows) for count, rows in (("count(*)", "new_rows"), ("-count(*)", "old_rows"))
    )
    op.execute(TALLY.format(from_new=new, from_old=old))
    for trigger in TRIGGERS.split(";\n"):
        op.execute(trigger)
    all_rows = GROUPS.format(count="count(*)", rows="deletion_requests")
    op.execute(f"INSERT INTO request_tallies {all_rows} GROUP BY 1, 2, 3, 4")


def downgrade() -> None:
    for name in ("inserted", "updated", "deleted"):
        op.execute(f"DROP TRIGGER tally_{name} ON deletion_requests")
    op.execute("DROP FUNCTION tally_requests()")
    op.drop_table("request_tallies")
