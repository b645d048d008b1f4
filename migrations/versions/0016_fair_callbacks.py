"""Callbacks take turns by API key and host; previews are counted; a platform's token counts once"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
UNDELIVERED = sa.text("delivered_at IS NULL")


def upgrade() -> None:
    op.add_column(
        "deletion_requests",
        sa.Column("callback_lanes", postgresql.ARRAY(sa.BigInteger()), comment="of each target; see Outbox.lane"),
    )
    op.add_column("outbox", sa.Column("api_key_id", sa.Uuid(), comment="the request's; null: an alert"))
    op.add_column(
        "outbox", sa.Column("lane", sa.BigInteger(), comment="keyed hash of API key and host; 0: the operator's")
    )
    op.add_column(
        "outbox",
        sa.Column("claimed_until", sa.DateTime(timezone=True), comment="end of the last attempt, or its latest end"),
    )
    op.drop_index("ix_outbox_due", "outbox")
    op.create_index("ix_outbox_due", "outbox", ["api_key_id", "next_at"], postgresql_where=UNDELIVERED)
    op.create_index("ix_outbox_lane", "outbox", ["lane", "next_at"], postgresql_where=UNDELIVERED)
    claimed = sa.text("claimed_until IS NOT NULL")
    op.create_index("ix_outbox_claimed", "outbox", ["api_key_id", "claimed_until"], postgresql_where=claimed)
    _create_tables()


def _create_tables() -> None:
    op.create_table(
        "callback_lanes",
        sa.Column("lane", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False, comment="in a row, without an answer"),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False, comment="nothing is sent before"),
        sa.PrimaryKeyConstraint("lane", name="pk_callback_lanes"),
    )
    op.create_table(
        "preview_counts",
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False, comment="identities and names looked up in this minute"),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_preview_counts_api_key_id"),
        sa.PrimaryKeyConstraint("api_key_id", name="pk_preview_counts"),
    )
    op.create_table(
        "used_tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="sha256 of a platform's token"),
        sa.Column("used_for", sa.LargeBinary(), nullable=False, comment="sha256 of what it was used for"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_used_tokens"),
    )
    op.create_index("ix_used_tokens_expires_at", "used_tokens", ["expires_at"])


def downgrade() -> None:
    for table in ("used_tokens", "preview_counts", "callback_lanes"):
        op.drop_table(table)
    for index in ("ix_outbox_claimed", "ix_outbox_lane", "ix_outbox_due"):
        op.drop_index(index, "outbox")
    op.create_index("ix_outbox_due", "outbox", ["next_at"], postgresql_where=UNDELIVERED)
    for column in ("claimed_until", "lane", "api_key_id"):
        op.drop_column("outbox", column)
    op.drop_column("deletion_requests", "callback_lanes")
