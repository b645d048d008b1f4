"""The oldest delivered callbacks are found by an index"""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    delivered = sa.text("delivered_at IS NOT NULL")
    op.create_index("ix_outbox_delivered_at", "outbox", ["delivered_at"], postgresql_where=delivered)


def downgrade() -> None:
    op.drop_index("ix_outbox_delivered_at", "outbox")
