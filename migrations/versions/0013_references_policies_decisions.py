"""The submitter's reference of a request, all policies of a model, and who rejected a request"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"

REQUESTS, MODELS = "deletion_requests", "models"
REQUEST_COLUMNS = {
    "reference": "sealed: the submitter's case number",
    "reference_hash": "keyed hash of API key and reference, to find it",
}


def upgrade() -> None:
    for name, comment in REQUEST_COLUMNS.items():
        op.add_column(REQUESTS, sa.Column(name, sa.LargeBinary(), nullable=True, comment=comment))
    op.create_index(
        "ix_deletion_requests_reference",
        REQUESTS,
        ["reference_hash", "seq"],
        postgresql_where=sa.text("reference_hash IS NOT NULL"),
    )
    number = sa.Column(
        "policy_version", sa.Integer(), server_default="1", nullable=False, comment="of its policies, the one in force"
    )
    op.add_column(MODELS, number)
    _create_policy_versions()
    op.create_table(
        "rejections",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["deletion_requests.id"], name=op.f("fk_rejections_request_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_rejections_api_key_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_rejections")),
    )


def _create_policy_versions() -> None:
    """The present policy of each model is its first version: who set it is not on record."""
    op.create_table(
        "policy_versions",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=True, comment="null: not on record"),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_policy_versions_model_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_policy_versions_api_key_id")),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("pk_policy_versions")),
    )
    op.execute(
        "INSERT INTO policy_versions (model_id, number, policy, at) SELECT id, 1, policy, created_at FROM models"
    )


def downgrade() -> None:
    for table in ("rejections", "policy_versions"):
        op.drop_table(table)
    op.drop_column(MODELS, "policy_version")
    op.drop_index("ix_deletion_requests_reference", REQUESTS)
    for name in reversed(REQUEST_COLUMNS):
        op.drop_column(REQUESTS, name)
