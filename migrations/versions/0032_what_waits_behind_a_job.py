"""The earliest deadline of what waits behind a job is one look at an index"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    pending = sa.text("status = 'pending' AND hold IS NULL")
    op.create_index(
        "ix_deletion_requests_pending_due", "deletion_requests", ["model_id", "due_at"], postgresql_where=pending
    )


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_pending_due", "deletion_requests")
