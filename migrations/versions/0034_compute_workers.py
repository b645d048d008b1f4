"""Compute workers say that they live and what they offer; a job remembers which slot was too small"""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    op.create_table(
        "compute_workers",
        sa.Column("name", sa.Text(), nullable=False, comment="host/process/random part"),
        sa.Column("slots", sa.Integer(), nullable=False, comment="jobs that it runs at once"),
        sa.Column("on_cuda", sa.Boolean(), nullable=False, comment="whether it computes on CUDA devices"),
        sa.Column("memory", sa.BigInteger(), nullable=True, comment="bytes of its largest slot; null: unknown"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_compute_workers")),
    )
    comment = "bytes of the largest slot that was too small"
    op.add_column("jobs", sa.Column("outgrew", sa.BigInteger(), nullable=True, comment=comment))


def downgrade() -> None:
    op.drop_column("jobs", "outgrew")
    op.drop_table("compute_workers")
