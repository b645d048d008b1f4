"""Epochs of data keys: what wraps a data key is destroyed with a purge, and was never in the database"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "key_epochs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "has_purged",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="so the key is to be destroyed",
        ),
        sa.Column(
            "is_target",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="data keys are being moved to it",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_epochs")),
    )
    op.add_column(
        "deletion_requests",
        sa.Column("key_epoch", sa.Uuid(), nullable=True, comment="whose key wraps the data key"),
    )
    op.create_foreign_key(
        op.f("fk_deletion_requests_key_epoch"), "deletion_requests", "key_epochs", ["key_epoch"], ["id"]
    )
    op.create_index(
        "ix_deletion_requests_key_epoch",
        "deletion_requests",
        ["key_epoch"],
        postgresql_where=sa.text("key_epoch IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_key_epoch", table_name="deletion_requests")
    op.drop_constraint(op.f("fk_deletion_requests_key_epoch"), "deletion_requests", type_="foreignkey")
    op.drop_column("deletion_requests", "key_epoch")
    op.drop_table("key_epochs")
