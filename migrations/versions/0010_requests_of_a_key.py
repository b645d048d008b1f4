"""An index for pages of the requests of one API key"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_index("ix_deletion_requests_api_key_id_seq", "deletion_requests", ["api_key_id", "seq"])


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_api_key_id_seq", "deletion_requests")
