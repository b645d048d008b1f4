"""The family of a model"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.add_column(
        "models", sa.Column("family", sa.Text(), comment="the model_type of its configuration, if that is known")
    )


def downgrade() -> None:
    op.drop_column("models", "family")
