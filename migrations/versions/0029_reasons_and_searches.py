"""The reason of an approval, and when a person was looked up"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.add_column("approvals", sa.Column("reason", sa.Text(), nullable=True, comment="a code"))
    searched = sa.Column("searched_at", sa.DateTime(timezone=True), nullable=True, comment="the last search's end")
    op.add_column("deletion_requests", searched)
    op.alter_column("outbox", "next_at", comment="null: given up, or not sent", existing_comment="null: given up")


def downgrade() -> None:
    op.alter_column("outbox", "next_at", comment="null: given up", existing_comment="null: given up, or not sent")
    op.drop_column("deletion_requests", "searched_at")
    op.drop_column("approvals", "reason")
