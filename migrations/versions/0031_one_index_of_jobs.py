"""The index before is a part of the new one. A transaction of its own: together they could deadlock with a writer"""

from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.drop_index("ix_deletion_requests_job_id", "deletion_requests")


def downgrade() -> None:
    op.create_index("ix_deletion_requests_job_id", "deletion_requests", ["job_id"])
