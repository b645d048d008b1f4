"""Rechecks: all earlier requests of a model are measured in full on one version, in shards"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"


IS_OPEN = sa.text("finished_at IS NULL")


def upgrade() -> None:
    _create_rechecks()
    _create_shards()
    comment = "the version that had fulfilled it before a recheck"
    op.add_column("deletion_requests", sa.Column("came_back_from", sa.Integer(), nullable=True, comment=comment))
    came_back = sa.text("came_back_from IS NOT NULL")
    columns = ["model_id", "came_back_from"]
    op.create_index("ix_deletion_requests_came_back", "deletion_requests", columns, postgresql_where=came_back)


def _create_rechecks() -> None:
    op.create_table(
        "rechecks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False, comment="in custody when it began"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True, comment="passed, reopened, or incomplete: a shard was given up"),
        sa.Column("measured", sa.Integer(), server_default="0", nullable=False, comment="requests, once it has ended"),
        sa.Column("reopened", sa.Integer(), server_default="0", nullable=False, comment="requests that came back"),
        sa.Column(
            "reasons", sa.ARRAY(sa.Text()), server_default="{}", nullable=False, comment="why shards were given up"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_rechecks_model_id_models")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_rechecks_version_id_versions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rechecks")),
        sa.UniqueConstraint("seq", name=op.f("uq_rechecks_seq")),
    )
    op.create_index("uq_rechecks_open_model", "rechecks", ["model_id"], unique=True, postgresql_where=IS_OPEN)
    op.create_index("ix_rechecks_model_seq", "rechecks", ["model_id", "seq"])


def _create_shards() -> None:
    op.create_table(
        "recheck_shards",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("recheck_id", sa.Uuid(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="a lost worker's is not one"),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False, comment="workers lost"),
        sa.Column("outgrew", sa.BigInteger(), nullable=True, comment="bytes of the largest slot that was too small"),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="back-off after a failed attempt"),
        sa.Column("measured", sa.Integer(), server_default="0", nullable=False, comment="requests that were measured"),
        sa.Column(
            "came_back", sa.ARRAY(sa.Text()), server_default="{}", nullable=False, comment="refs of those over a limit"
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it was given up"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("reason ~ '^[A-Za-z_]{1,64}$'", name=op.f("ck_recheck_shards_reason_is_a_code")),
        sa.ForeignKeyConstraint(["recheck_id"], ["rechecks.id"], name=op.f("fk_recheck_shards_recheck_id_rechecks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recheck_shards")),
    )
    op.create_index("ix_recheck_shards_recheck_id", "recheck_shards", ["recheck_id", "first_seq"])
    op.create_index("ix_recheck_shards_open", "recheck_shards", ["created_at", "first_seq"], postgresql_where=IS_OPEN)


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_came_back", "deletion_requests")
    op.drop_column("deletion_requests", "came_back_from")
    op.drop_table("recheck_shards")
    op.drop_table("rechecks")
