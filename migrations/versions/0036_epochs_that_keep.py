"""The name of what an epoch says that trained only on what is kept"""

from alembic import context

revision = "0036"
down_revision = "0035"

NAMES = ", exact, keeps"


def upgrade() -> None:
    context.script.get_revision("0025").module._replace_names(NAMES)


def downgrade() -> None:
    context.script.get_revision("0025").module._replace_names(", exact")
