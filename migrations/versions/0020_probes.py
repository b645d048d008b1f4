"""Prompts that must not bring out a secret, the names of what is counted of them, and an epoch's learning rate"""

import sqlalchemy as sa
from alembic import context, op

revision = "0020"
down_revision = "0019"

NAMES = "probes, asked, samples, answered_before, answered_after, learning_rate"


def upgrade() -> None:
    comment = "sealed: prompts that must not bring out a secret, as JSON"
    op.add_column("deletion_requests", sa.Column("probes", sa.LargeBinary(), nullable=True, comment=comment))
    _replace_names(f", {NAMES}")


def downgrade() -> None:
    _replace_names("")
    op.drop_column("deletion_requests", "probes")


def _replace_names(names: str) -> None:
    """The names of 0019 with these in addition."""
    before = context.script.get_revision("0019").module
    before._replace_names(f"{before.LAST_NAME}, {', '.join(before.NEW_NAMES)}{names}")
