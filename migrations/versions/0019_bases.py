"""The model that a registered model was fine-tuned from, and the names of what attacks find"""

import sqlalchemy as sa
from alembic import context, op

revision = "0019"
down_revision = "0018"

LAST_NAME = "within_total_budget"
NEW_NAMES = (
    *("attacks", "auc", "control", "effect", "figure", "level", "name", "p_value", "passed", "status", "texts"),
    *("unseen", "why", "max_neighbour_loss", "neighbour_loss_after", "neighbour_loss_before", "neighbour_ma_after"),
    *("neighbour_ma_before", "within_neighbour_limit"),
)


def upgrade() -> None:
    comment = "digest of the folder of the model that it was fine-tuned from"
    op.add_column("models", sa.Column("base", sa.Text(), nullable=True, comment=comment))
    _replace_names(f"{LAST_NAME}, {', '.join(NEW_NAMES)}")


def downgrade() -> None:
    _replace_names(LAST_NAME)
    op.drop_column("models", "base")


def _replace_names(names: str) -> None:
    """The function of 0018 with these names in place of its last one, and with its settings."""
    measured = context.script.get_revision("0018").module.MEASURED.replace(LAST_NAME, names)
    op.execute(measured.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute("ALTER FUNCTION unlearnd_measured(jsonb) SET search_path = public, pg_temp")
