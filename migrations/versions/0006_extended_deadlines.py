"""Deadlines that a controller extended, with the reason"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("deletion_requests", sa.Column("extended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("deletion_requests", sa.Column("extension_reason", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("deletion_requests", "extension_reason")
    op.drop_column("deletion_requests", "extended_at")
