"""Failed batches are split; requests are batched fairly by API key; versions that remember a request are found fast"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

REQUESTS = "deletion_requests"
PENDING = sa.text("status = 'pending' AND hold IS NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("split_of", sa.Uuid(), nullable=True, comment="a job that failed"))
    op.create_foreign_key(op.f("fk_jobs_split_of"), "jobs", "jobs", ["split_of"], ["id"])
    op.create_index(op.f("ix_jobs_split_of"), "jobs", ["split_of"])
    op.add_column(
        REQUESTS, sa.Column("split_job_id", sa.Uuid(), nullable=True, comment="the failed job it was split from")
    )
    op.add_column(
        REQUESTS, sa.Column("split_part", sa.Integer(), nullable=True, comment="requests of one part form the next job")
    )
    op.create_foreign_key(op.f("fk_deletion_requests_split_job_id"), REQUESTS, "jobs", ["split_job_id"], ["id"])
    op.create_index(
        "ix_deletion_requests_split",
        REQUESTS,
        ["split_job_id", "split_part"],
        postgresql_where=sa.text("split_job_id IS NOT NULL"),
    )
    op.create_index(
        "ix_deletion_requests_model_version",
        REQUESTS,
        ["model_id", "version"],
        postgresql_where=sa.text("version IS NOT NULL"),
    )
    op.create_index("new_pending", REQUESTS, ["model_id", "api_key_id", "due_at", "seq"], postgresql_where=PENDING)
    op.drop_index("ix_deletion_requests_pending", table_name=REQUESTS)
    op.execute("ALTER INDEX new_pending RENAME TO ix_deletion_requests_pending")


def downgrade() -> None:
    op.drop_index("ix_deletion_requests_pending", table_name=REQUESTS)
    op.create_index("ix_deletion_requests_pending", REQUESTS, ["model_id", "due_at", "seq"], postgresql_where=PENDING)
    op.drop_index("ix_deletion_requests_model_version", table_name=REQUESTS)
    op.drop_index("ix_deletion_requests_split", table_name=REQUESTS)
    op.drop_constraint(op.f("fk_deletion_requests_split_job_id"), REQUESTS, type_="foreignkey")
    op.drop_column(REQUESTS, "split_part")
    op.drop_column(REQUESTS, "split_job_id")
    op.drop_index(op.f("ix_jobs_split_of"), table_name="jobs")
    op.drop_constraint(op.f("fk_jobs_split_of"), "jobs", type_="foreignkey")
    op.drop_column("jobs", "split_of")
