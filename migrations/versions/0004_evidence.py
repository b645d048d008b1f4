"""The index of a job's thresholds in the log, requests that supplement others, the register of downloads"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


# Jobs that wait for a record lack what the new form needs: they go on from their last checkpoint.
AGAIN = """
UPDATE deletion_requests SET status = 'batched', verdict = NULL FROM jobs
WHERE jobs.id = job_id AND jobs.stage IN ('certify', 'publish') AND status IN ('verifying', 'publishing');
UPDATE jobs SET stage = 'queued', outcome = NULL, reason = NULL, report = NULL, owner = NULL, lease_expires_at = NULL,
    woken_at = NULL, attempts = 0
WHERE stage IN ('certify', 'publish')
"""


def upgrade() -> None:
    op.execute(AGAIN)
    op.add_column(
        "jobs", sa.Column("thresholds_index", sa.BigInteger(), nullable=True, comment="their entry in the log")
    )
    op.add_column(
        "deletion_requests",
        sa.Column("supplements", sa.Text(), nullable=True, comment="ref of a request whose texts were submitted again"),
    )
    op.create_table(
        "downloads",
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_downloads_version_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_downloads_api_key_id")),
        sa.PrimaryKeyConstraint("version_id", "api_key_id", name=op.f("pk_downloads")),
    )


def downgrade() -> None:
    op.drop_table("downloads")
    op.drop_column("deletion_requests", "supplements")
    op.drop_column("jobs", "thresholds_index")
