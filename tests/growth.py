"""A long history, made in the database: requests, versions, jobs and log entries by the thousand."""

from sqlalchemy import text

from service.bootstrap import Services
from service.db.session import Database

REQUESTS = """
INSERT INTO deletion_requests (id, model_id, api_key_id, status, regulation, received_at, due_at, accepted_at,
    records_count, ref, commitment, wrapped_key, body_hash)
SELECT gen_random_uuid(), (SELECT id FROM models WHERE name = :model), (SELECT id FROM api_keys LIMIT 1), 'pending',
    'gdpr', now(), now() + interval '30 days' + (hashint4(n) % 1000000) * interval '1 second', now(), 1,
    md5(n::text || clock_timestamp()), '\\x00', '\\x00', '\\x00'
FROM generate_series(1, :count) AS n
"""
DONE = """
WITH parent AS (SELECT id, model_id FROM versions WHERE number = 0 AND model_id =
        (SELECT id FROM models WHERE name = :model)),
made AS (
    INSERT INTO jobs (id, model_id, parent_version_id, stage, outcome, policy)
    SELECT gen_random_uuid(), parent.model_id, parent.id, 'done', 'passed', '{}'
    FROM parent, generate_series(1, :count) RETURNING id, seq)
INSERT INTO versions (id, model_id, number, parent_id, job_id, digest, files, metrics)
SELECT gen_random_uuid(), parent.model_id, row_number() OVER (ORDER BY made.seq), parent.id, made.id,
    md5(made.id::text), '[]', '{}' FROM made, parent
"""
LOG = """
INSERT INTO audit_entries (index, entry, leaf_hash)
SELECT (SELECT coalesce(max(index), -1) FROM audit_entries) + n, entry, sha256('\\x00'::bytea || entry)
FROM generate_series(1, :count) AS n,
    LATERAL (SELECT convert_to(format('{"at":"2026-01-01","kind":"test","number":%s}', n), 'UTF8') AS entry) AS made
"""
TOLD = """
INSERT INTO outbox (id, request_id, status, delivered_at)
SELECT gen_random_uuid(), id, 'completed', now() FROM deletion_requests LIMIT :count
"""


def grow(services: Services, model: str, *, requests: int = 0, versions: int = 0, entries: int = 0) -> None:
    """Add pending requests and as many callbacks made, published versions with their jobs, log entries; and analyse."""
    url = services.settings.owner_database_url  # the service may not write into the log
    owner = Database(url, pool_size=1, answer_seconds=600.0)
    for statement, count in ((REQUESTS, requests), (DONE, versions), (LOG, entries), (TOLD, requests)):
        with owner.transaction() as session:
            session.execute(text(statement), {"model": model, "count": count})
    with owner.transaction() as session:
        session.execute(
            text("UPDATE models SET latest = :n WHERE name = :m AND latest < :n"), {"n": versions, "m": model}
        )
    with owner.reading() as session:
        session.execute(text("ANALYZE"))
    owner.close()
