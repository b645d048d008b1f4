"""Compute may announce that a split request is pending again, and puts no callback off"""

from alembic import op

revision = "0018"
down_revision = "0017"

NOTIFIED = """
CREATE OR REPLACE FUNCTION notifications_computed_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (
        NEW.delivered_at IS NULL AND NEW.next_at IS NOT NULL AND (NEW.target >= 0 OR NEW.next_at <= now())
        AND EXISTS (
            SELECT FROM deletion_requests AS request WHERE request.id = NEW.request_id AND request.status = NEW.status
            AND (request.status IN ('batched', 'unlearning', 'verifying', 'rejected', 'failed'){split})
        )
        AND (TG_OP = 'INSERT' OR NEW.request_id = OLD.request_id AND NEW.status = OLD.status{not_later})
    ) IS NOT TRUE THEN
        RAISE EXCEPTION 'a compute worker announces what has happened to requests of its jobs, and nothing else'
        USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$
"""
SPLIT = " OR request.status = 'pending' AND request.split_job_id IS NOT NULL"
NOT_LATER = " AND NEW.next_at <= greatest(OLD.next_at, now())"


def upgrade() -> None:
    op.execute(NOTIFIED.format(split=SPLIT, not_later=NOT_LATER))


def downgrade() -> None:
    op.execute(NOTIFIED.format(split="", not_later=""))
