"""Lost workers are not attempts; a report says how many earlier requests were measured in full"""

import sqlalchemy as sa
from alembic import context, op

revision = "0025"
down_revision = "0024"
OF_ATTEMPTS = "since the last progress; a lost worker's is not"


def _replace_names(further: str) -> None:
    """Let compute workers say these names in measurements, beside those of the releases before."""
    neighbours, repairs = (context.script.get_revision(revision).module for revision in ("0022", "0023"))
    neighbours._replace_names(f", {neighbours.NAMES}, {repairs.NAMES}{further}")


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "losses",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="workers lost since the last progress",
        ),
    )
    op.alter_column("jobs", "attempts", comment=OF_ATTEMPTS, existing_comment=None)
    _replace_names(", exact")


def downgrade() -> None:
    _replace_names("")
    op.alter_column("jobs", "attempts", comment=None, existing_comment=OF_ATTEMPTS)
    op.drop_column("jobs", "losses")
