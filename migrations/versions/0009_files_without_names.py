"""Files of an indexed folder by their numbers: a name may be somebody's"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
COMMENT = "of a folder: its number in the order of names"


def upgrade() -> None:
    op.execute("DELETE FROM corpus_records WHERE corpus_id IN (SELECT id FROM corpora WHERE form = 'folder')")
    op.execute("UPDATE corpora SET state = 'failed', reason = 'register it again', cursor = NULL WHERE form = 'folder'")
    op.execute("UPDATE corpora SET cursor = jsonb_set(cursor, '{file}', '0') WHERE cursor IS NOT NULL")
    op.alter_column(
        "corpus_records", "file", type_=sa.BigInteger(), existing_nullable=False, postgresql_using="0", comment=COMMENT
    )


def downgrade() -> None:
    op.execute("DELETE FROM corpus_records WHERE corpus_id IN (SELECT id FROM corpora WHERE form = 'folder')")
    op.execute("UPDATE corpora SET state = 'failed', reason = 'register it again', cursor = NULL WHERE form = 'folder'")
    op.execute("UPDATE corpora SET cursor = jsonb_set(cursor, '{file}', '\"\"') WHERE cursor IS NOT NULL")
    op.alter_column(
        "corpus_records", "file", type_=sa.Text(), existing_nullable=False, postgresql_using="''", comment=None,
        existing_comment=COMMENT,
    )  # fmt: skip
