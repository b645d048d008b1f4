"""The model that a registered model was fine-tuned from"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    comment = "digest of the folder of the model that it was fine-tuned from"
    op.add_column("models", sa.Column("base", sa.String(), nullable=True, comment=comment))


def downgrade() -> None:
    op.drop_column("models", "base")
