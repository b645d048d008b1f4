"""Files of an indexed folder have numbers: a file name may be a person's name"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
COMMENT = "of a folder: its number in the order of names"


def _begin_anew() -> None:
    """Index everything again. Folders must be registered again, because their size is counted in another way."""
    op.execute("TRUNCATE corpus_records")
    op.execute(
        "UPDATE corpora SET state = 'indexing', reason = NULL, cursor = NULL, records = 0, done = 0, indexed_at = NULL"
    )
    op.execute("UPDATE corpora SET state = 'failed', reason = 'register it again' WHERE form = 'folder'")


def upgrade() -> None:
    _begin_anew()
    op.alter_column(
        "corpus_records", "file", type_=sa.BigInteger(), existing_nullable=False, postgresql_using="0", comment=COMMENT
    )


def downgrade() -> None:
    _begin_anew()
    op.alter_column(
        "corpus_records", "file", type_=sa.Text(), existing_nullable=False, postgresql_using="''", comment=None,
        existing_comment=COMMENT,
    )  # fmt: skip
