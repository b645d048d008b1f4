"""The jobs that measured a request are found by an index"""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    memorised = sa.text("(report -> 'memorised') jsonb_path_ops")
    op.create_index("ix_jobs_memorised", "jobs", [memorised], postgresql_using="gin")


def downgrade() -> None:
    op.drop_index("ix_jobs_memorised", "jobs")
