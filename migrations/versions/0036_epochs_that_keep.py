"""The name of what an epoch says that trained only on what is kept"""

from alembic import context

revision = "0036"
down_revision = "0035"

BEFORE = ", exact"


def upgrade() -> None:
    context.script.get_revision("0025").module._replace_names(f"{BEFORE}, keeps")


def downgrade() -> None:
    context.script.get_revision("0025").module._replace_names(BEFORE)
