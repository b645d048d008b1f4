"""Failed requests stay due until somebody resolves them; the overlap of held-out with retain text"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"

REQUESTS = "deletion_requests"
OPEN = sa.text("status NOT IN ('completed', 'not_memorised', 'cancelled', 'rejected', 'failed')")
DUE = sa.text("resolved_at IS NULL AND status NOT IN ('completed', 'not_memorised', 'cancelled', 'rejected')")


def upgrade() -> None:
    op.add_column(REQUESTS, sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        REQUESTS, sa.Column("resolved_reason", sa.Text(), nullable=True, comment="how a failed request was dealt with")
    )
    op.add_column(REQUESTS, sa.Column("resolved_by", sa.Uuid(), nullable=True, comment="the API key that resolved it"))
    op.alter_column(
        "models",
        "heldout",
        comment="sha256, records, overlap",
        existing_comment="sha256, records",
        existing_type=postgresql.JSONB(),
        existing_nullable=False,
    )
    # The old index goes last: only that keeps readers out, and for a moment.
    op.create_index("ix_deletion_requests_due", REQUESTS, ["due_at"], postgresql_where=DUE)
    op.drop_index("ix_deletion_requests_open", table_name=REQUESTS)
    # These passed their own tests, but their job published nothing.
    op.execute("UPDATE deletion_requests SET verdict = 'NOT_PUBLISHED' WHERE status = 'failed' AND verdict = 'PASS'")


def downgrade() -> None:
    op.execute("UPDATE models SET heldout = heldout - 'overlap' WHERE heldout ? 'overlap'")
    op.execute("UPDATE deletion_requests SET verdict = 'PASS' WHERE status = 'failed' AND verdict = 'NOT_PUBLISHED'")
    op.create_index("ix_deletion_requests_open", REQUESTS, ["due_at"], postgresql_where=OPEN)
    op.drop_index("ix_deletion_requests_due", table_name=REQUESTS)
    op.drop_column(REQUESTS, "resolved_by")
    op.drop_column(REQUESTS, "resolved_reason")
    op.drop_column(REQUESTS, "resolved_at")
    op.alter_column(
        "models",
        "heldout",
        comment="sha256, records",
        existing_comment="sha256, records, overlap",
        existing_type=postgresql.JSONB(),
        existing_nullable=False,
    )
