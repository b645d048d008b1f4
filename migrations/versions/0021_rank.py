"""The name of the rank of an epoch's adapter, which a run finds by itself"""

from alembic import context

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    before = context.script.get_revision("0020").module
    before._replace_names(f", {before.NAMES}, rank")


def downgrade() -> None:
    before = context.script.get_revision("0020").module
    before._replace_names(f", {before.NAMES}")
