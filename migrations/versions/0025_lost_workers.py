"""Lost workers are not attempts"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
OF_ATTEMPTS = "since the last progress; a lost worker's is not"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "losses",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="workers lost since the last progress",
        ),
    )
    op.alter_column("jobs", "attempts", comment=OF_ATTEMPTS, existing_comment=None)


def downgrade() -> None:
    op.alter_column("jobs", "attempts", comment=None, existing_comment=OF_ATTEMPTS)
    op.drop_column("jobs", "losses")
