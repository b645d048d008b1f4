"""The index of a certificate's log entry, and its proof"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "certificates", sa.Column("log_index", sa.BigInteger(), nullable=True, comment="its entry in the log")
    )
    op.add_column("certificates", sa.Column("proof", sa.Text(), nullable=True, comment="the proof, once it is made"))


def downgrade() -> None:
    op.drop_column("certificates", "proof")
    op.drop_column("certificates", "log_index")
