"""The earliest deadline of a job's requests is one look at an index"""

from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    op.create_index("ix_deletion_requests_job_due", "deletion_requests", ["job_id", "due_at"])


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_job_due", "deletion_requests")
