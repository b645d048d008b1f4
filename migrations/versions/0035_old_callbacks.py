"""The oldest delivered callbacks are found by an index, which is built while others write"""

from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET statement_timeout = 0")  # nobody waits for it
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_outbox_delivered_at")  # of a run that was cut
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_outbox_delivered_at ON outbox (delivered_at) WHERE delivered_at IS NOT NULL"
        )
        op.execute("SET statement_timeout = '60s'")


def downgrade() -> None:
    op.drop_index("ix_outbox_delivered_at", "outbox")
