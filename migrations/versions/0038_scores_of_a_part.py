"""The name of what says that an attack's scores are over a part of the texts"""

from alembic import context

revision = "0038"
down_revision = "0037"

BEFORE = ", exact, keeps"


def upgrade() -> None:
    context.script.get_revision("0025").module._replace_names(f"{BEFORE}, partial")


def downgrade() -> None:
    context.script.get_revision("0025").module._replace_names(BEFORE)
