"""The family of a model"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    comment = "the model_type of its configuration; null if it was registered before this column"
    op.add_column("models", sa.Column("family", sa.String(), comment=comment))


def downgrade() -> None:
    op.drop_column("models", "family")
