"""A full job is as urgent as what waits behind it"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    waits = "earliest deadline of requests that wait behind it"
    op.add_column("jobs", sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True, comment=waits))


def downgrade() -> None:
    op.drop_column("jobs", "next_due_at")
