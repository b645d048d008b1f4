"""The names of what an epoch says of repairs"""

from alembic import context

revision = "0023"
down_revision = "0022"

NAMES = "repairs, samples_lost"


def upgrade() -> None:
    before = context.script.get_revision("0022").module
    before._replace_names(f", {before.NAMES}, {NAMES}")


def downgrade() -> None:
    before = context.script.get_revision("0022").module
    before._replace_names(f", {before.NAMES}")
