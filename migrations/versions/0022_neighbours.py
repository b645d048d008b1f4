"""Named texts that a model must not lose, and the names of what is measured on them"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"

NAMES = "neighbour_set, neighbours_lost"


def upgrade() -> None:
    comment = "name -> sha256, records of texts that must not be lost"
    column = sa.Column("neighbours", postgresql.JSONB(), nullable=False, server_default="{}", comment=comment)
    op.add_column("models", column)
    _replace_names(f", {NAMES}")


def downgrade() -> None:
    _replace_names("")
    op.drop_column("models", "neighbours")


def _replace_names(names: str) -> None:
    """The names of 0021 with these in addition."""
    before = context.script.get_revision("0020").module
    before._replace_names(f", {before.NAMES}, rank{names}")
