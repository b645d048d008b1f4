"""The first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

# One writer at a time, so that the numbers have no gap; a sequence would leave one at every rollback.
AUDIT_APPEND = """
CREATE FUNCTION audit_append(new_entry bytea) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE next_index bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7310579);
    SELECT coalesce(max(a.index) + 1, 0) INTO next_index FROM audit_entries a;
    INSERT INTO audit_entries (index, entry, leaf_hash)
    VALUES (next_index, new_entry, sha256('\\x00'::bytea || new_entry));
    RETURN next_index;
END $$
"""
APPEND_ONLY = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END $$;
CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
"""


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_table(
        "audit_entries",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False, comment="canonical JSON; ids and digests only"),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("index", name=op.f("pk_audit_entries")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("retain", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="sha256, records"),
        sa.Column("heldout", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="sha256, records"),
        sa.Column("latest", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=False, comment="sha256 of the manifest; the folder's name"),
        sa.Column(
            "files",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="path, size, sha256 of every file",
        ),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_versions_model_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_versions_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("job_id", name=op.f("uq_versions_job_id")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_versions_model_id_number")),
    )
    op.create_index(op.f("ix_versions_parent_id"), "versions", ["parent_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("parent_version_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), server_default="queued", nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "policy",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="the model's policy when the batch was sealed",
        ),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "steps",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="counts progress, for the stall watch",
        ),
        sa.Column("progress", sa.Float(), server_default="0", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "metrics",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "report",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="aggregates and verdicts by request",
        ),
        sa.Column("progress_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("woken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="back-off after a failed attempt"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_jobs_model_id")),
        sa.ForeignKeyConstraint(["parent_version_id"], ["versions.id"], name=op.f("fk_jobs_parent_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("seq", name=op.f("uq_jobs_seq")),
    )
    op.create_index(
        "ix_jobs_open_lease",
        "jobs",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("stage NOT IN ('done', 'quarantined')"),
    )
    op.create_index(op.f("ix_jobs_parent_version_id"), "jobs", ["parent_version_id"], unique=False)
    op.create_index(
        "uq_jobs_active_model",
        "jobs",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("stage NOT IN ('done', 'quarantined')"),
    )
    op.create_table(
        "certificates",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="the DSSE envelope, exactly as published"),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("overall", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_certificates_job_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_certificates")),
    )
    op.create_table(
        "deletion_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("regulation", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("records_count", sa.Integer(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False, comment="random; the only name that leaves the service"),
        sa.Column(
            "commitment",
            sa.LargeBinary(),
            nullable=False,
            comment="request leaf over the records' commitments",
        ),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=True, comment="data key, wrapped; purge destroys it"),
        sa.Column("subject_ref", sa.LargeBinary(), nullable=True, comment="sealed"),
        sa.Column("callback_url", sa.LargeBinary(), nullable=True, comment="sealed"),
        sa.Column("idempotency_hash", sa.LargeBinary(), nullable=True, comment="keyed hash of the Idempotency-Key"),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False, comment="keyed hash of the body"),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.CheckConstraint("records_count > 0", name=op.f("ck_deletion_requests_has_records")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_deletion_requests_api_key_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_deletion_requests_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_deletion_requests_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletion_requests")),
        sa.UniqueConstraint(
            "api_key_id", "idempotency_hash", name=op.f("uq_deletion_requests_api_key_id_idempotency_hash")
        ),
        sa.UniqueConstraint("ref", name=op.f("uq_deletion_requests_ref")),
        sa.UniqueConstraint("seq", name=op.f("uq_deletion_requests_seq")),
    )
    op.create_index("ix_deletion_requests_due_at", "deletion_requests", ["due_at"], unique=False)
    op.create_index(op.f("ix_deletion_requests_job_id"), "deletion_requests", ["job_id"], unique=False)
    op.create_index(op.f("ix_deletion_requests_model_id"), "deletion_requests", ["model_id"], unique=False)
    op.create_index(
        "ix_deletion_requests_pending",
        "deletion_requests",
        ["model_id", "due_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_deletion_requests_status_seq", "deletion_requests", ["status", "seq"], unique=False)
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    op.create_index("ix_job_events_job_id_id", "job_events", ["job_id", "id"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "next_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=True,
            comment="null: given up",
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["deletion_requests.id"], name=op.f("fk_outbox_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(
        "ix_outbox_due", "outbox", ["next_at"], unique=False, postgresql_where=sa.text("delivered_at IS NULL")
    )
    op.create_index(op.f("ix_outbox_request_id"), "outbox", ["request_id"], unique=False)
    op.create_table(
        "records",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["deletion_requests.id"], name=op.f("fk_records_request_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("request_id", "position", name=op.f("pk_records")),
    )
    op.create_foreign_key(op.f("fk_versions_job_id"), "versions", "jobs", ["job_id"], ["id"])
    op.execute(AUDIT_APPEND)
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries")
    op.execute("DROP FUNCTION audit_refuse()")
    op.execute("DROP FUNCTION audit_append(bytea)")
    op.drop_constraint(op.f("fk_versions_job_id"), "versions", type_="foreignkey")
    op.drop_table("records")
    op.drop_index(op.f("ix_outbox_request_id"), table_name="outbox")
    op.drop_index("ix_outbox_due", table_name="outbox", postgresql_where=sa.text("delivered_at IS NULL"))
    op.drop_table("outbox")
    op.drop_index("ix_job_events_job_id_id", table_name="job_events")
    op.drop_table("job_events")
    op.drop_index("ix_deletion_requests_status_seq", table_name="deletion_requests")
    op.drop_index(
        "ix_deletion_requests_pending",
        table_name="deletion_requests",
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.drop_index(op.f("ix_deletion_requests_model_id"), table_name="deletion_requests")
    op.drop_index(op.f("ix_deletion_requests_job_id"), table_name="deletion_requests")
    op.drop_index("ix_deletion_requests_due_at", table_name="deletion_requests")
    op.drop_table("deletion_requests")
    op.drop_table("certificates")
    op.drop_index(
        "uq_jobs_active_model",
        table_name="jobs",
        postgresql_where=sa.text("stage NOT IN ('done', 'quarantined')"),
    )
    op.drop_index(op.f("ix_jobs_parent_version_id"), table_name="jobs")
    op.drop_index(
        "ix_jobs_open_lease",
        table_name="jobs",
        postgresql_where=sa.text("stage NOT IN ('done', 'quarantined')"),
    )
    op.drop_table("jobs")
    op.drop_index(op.f("ix_versions_parent_id"), table_name="versions")
    op.drop_table("versions")
    op.drop_table("models")
    op.drop_table("audit_entries")
    op.drop_table("api_keys")
