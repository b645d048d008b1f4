"""Indexes for a long history: lists by model and stage, open requests by deadline"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEPT = sa.text("wrapped_key IS NOT NULL")
PENDING = sa.text("status = 'pending'")
OPEN = sa.text("status NOT IN ('completed', 'not_memorised', 'cancelled', 'rejected', 'failed')")


def upgrade() -> None:
    # What is dropped goes last: only that keeps readers out, and for a moment.
    op.create_index("ix_deletion_requests_model_seq", "deletion_requests", ["model_id", "seq"])
    op.create_index("ix_deletion_requests_open", "deletion_requests", ["due_at"], postgresql_where=OPEN)
    op.create_index("ix_deletion_requests_kept", "deletion_requests", ["finished_at"], postgresql_where=KEPT)
    op.create_index("new_pending", "deletion_requests", ["model_id", "due_at", "seq"], postgresql_where=PENDING)
    op.create_index("ix_jobs_model_seq", "jobs", ["model_id", "seq"])
    op.create_index("ix_jobs_stage_seq", "jobs", ["stage", "seq"])
    op.drop_index("ix_deletion_requests_model_id", table_name="deletion_requests")
    op.drop_index("ix_deletion_requests_pending", table_name="deletion_requests")
    op.execute("ALTER INDEX new_pending RENAME TO ix_deletion_requests_pending")


def downgrade() -> None:
    op.drop_index("ix_jobs_stage_seq", table_name="jobs")
    op.drop_index("ix_jobs_model_seq", table_name="jobs")
    op.drop_index("ix_deletion_requests_pending", table_name="deletion_requests")
    op.create_index(
        "ix_deletion_requests_pending", "deletion_requests", ["model_id", "due_at"], postgresql_where=PENDING
    )
    op.drop_index("ix_deletion_requests_kept", table_name="deletion_requests")
    op.drop_index("ix_deletion_requests_open", table_name="deletion_requests")
    op.drop_index("ix_deletion_requests_model_seq", table_name="deletion_requests")
    op.create_index("ix_deletion_requests_model_id", "deletion_requests", ["model_id"])
