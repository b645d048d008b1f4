"""The trace of a request and of its job"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for table in ("deletion_requests", "jobs"):
        op.add_column(table, sa.Column("traceparent", sa.Text(), nullable=True, comment="W3C Trace Context"))


def downgrade() -> None:
    for table in ("jobs", "deletion_requests"):
        op.drop_column(table, "traceparent")
