"""Requests that name a person: corpora, the subject index, approval; several callbacks per request, in dialects"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

REQUESTS = "deletion_requests"


def _columns() -> tuple[sa.Column, ...]:
    return (
        sa.Column("callbacks", sa.Integer(), server_default="0", nullable=False, comment="how many they are"),
        sa.Column("dialect", sa.Text(), nullable=True, comment="in which they are told"),
        sa.Column("subject_request_id", sa.Uuid(), nullable=True, comment="OpenDSR's name of the request"),
        sa.Column(
            "subject", sa.LargeBinary(), nullable=True, comment="sealed: identities and names, behind their nonce"
        ),
        sa.Column("hold", sa.Text(), nullable=True, comment="why it may not be batched: resolve, approval"),
        sa.Column(
            "resolution", postgresql.JSONB(astext_type=sa.Text()), nullable=True,
            comment="numbers of index records, where was searched",
        ),
        sa.Column("results_count", sa.Integer(), nullable=True, comment="records that were found by the subject"),
    )  # fmt: skip


def upgrade() -> None:
    for column in _columns():
        op.add_column(REQUESTS, column)
    op.execute("UPDATE deletion_requests SET callbacks = 1 WHERE callback_url IS NOT NULL")
    op.alter_column(
        REQUESTS, "callback_url", comment="sealed; one, or JSON of several with their tokens", existing_comment="sealed"
    )
    op.create_unique_constraint(op.f("uq_deletion_requests_subject_request_id"), REQUESTS, ["subject_request_id"])
    op.drop_constraint("ck_deletion_requests_has_records", REQUESTS)
    op.create_check_constraint(op.f("ck_deletion_requests_counts_records"), REQUESTS, "records_count >= 0")
    op.create_index(
        "new_pending", REQUESTS, ["model_id", "due_at", "seq"],
        postgresql_where=sa.text("status = 'pending' AND hold IS NULL"),
    )  # fmt: skip
    op.drop_index("ix_deletion_requests_pending", table_name=REQUESTS)
    op.execute("ALTER INDEX new_pending RENAME TO ix_deletion_requests_pending")
    op.create_index(
        "ix_deletion_requests_held", REQUESTS, ["hold", "due_at"], postgresql_where=sa.text("hold IS NOT NULL")
    )
    target = sa.Column(
        "target", sa.Integer(), server_default="0", nullable=False, comment="which of the request's; below 0: an alert"
    )
    op.add_column("outbox", target)
    op.create_index(
        "uq_outbox_alerts", "outbox", ["request_id", "status"], unique=True, postgresql_where=sa.text("target < 0")
    )
    op.create_table(
        "approvals",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["deletion_requests.id"], name=op.f("fk_approvals_request_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_approvals_api_key_id")),
        sa.PrimaryKeyConstraint("request_id", "api_key_id", name=op.f("pk_approvals")),
    )
    _create_corpora()


def _create_corpora() -> None:
    op.create_table(
        "corpora",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False, comment="jsonl, csv, parquet, lines, folder"),
        sa.Column("text_column", sa.Text(), nullable=False),
        sa.Column(
            "columns", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="column -> identity type"
        ),
        sa.Column("phone_region", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="indexing", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "cursor", postgresql.JSONB(astext_type=sa.Text()), nullable=True,
            comment="place of the last record that is indexed",
        ),
        sa.Column("records", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False, comment="of size"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes; rows of a Parquet file"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("indexed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_corpora_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corpora")),
        sa.UniqueConstraint("model_id", "name", name=op.f("uq_corpora_model_id_name")),
    )  # fmt: skip
    numbers = sa.ARRAY(sa.BigInteger())
    op.create_table(
        "corpus_records",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("corpus_id", sa.Uuid(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("text_hash", sa.BigInteger(), nullable=False),
        sa.Column("identifiers", numbers, nullable=False, comment="identity type and value, in three hashed formats"),
        sa.Column("bands", numbers, nullable=False, comment="of the text's MinHash"),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False, comment="hashed words with their positions"),
        sa.ForeignKeyConstraint(
            ["corpus_id"], ["corpora.id"], name=op.f("fk_corpus_records_corpus_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corpus_records")),
        sa.UniqueConstraint("corpus_id", "file", "start", name=op.f("uq_corpus_records_corpus_id_file_start")),
    )
    for column in ("identifiers", "bands", "words"):
        op.create_index(f"ix_corpus_records_{column}", "corpus_records", [column], postgresql_using="gin")


def downgrade() -> None:
    for table in ("corpus_records", "corpora", "approvals"):
        op.drop_table(table)
    op.execute("DELETE FROM outbox WHERE target <> 0")
    op.drop_index("uq_outbox_alerts", table_name="outbox")
    op.drop_column("outbox", "target")
    op.drop_index("ix_deletion_requests_held", table_name=REQUESTS)
    op.drop_index("ix_deletion_requests_pending", table_name=REQUESTS)
    op.create_index(
        "ix_deletion_requests_pending", REQUESTS, ["model_id", "due_at", "seq"],
        postgresql_where=sa.text("status = 'pending'"),
    )  # fmt: skip
    op.drop_constraint("ck_deletion_requests_counts_records", REQUESTS)
    # One without records cannot be told from others in the old form, which is as strict as it was for what comes.
    op.execute(
        "ALTER TABLE deletion_requests "
        "ADD CONSTRAINT ck_deletion_requests_has_records CHECK (records_count > 0) NOT VALID"
    )
    op.drop_constraint("uq_deletion_requests_subject_request_id", REQUESTS)
    op.alter_column(
        REQUESTS, "callback_url", comment="sealed", existing_comment="sealed; one, or JSON of several with their tokens"
    )
    for column in reversed(_columns()):
        op.drop_column(REQUESTS, column.name)
