"""New requests, stored together in one statement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from service.db.session import POOL_SECONDS, Database
from service.db.together import Together

AT_ONCE, BYTES_AT_ONCE = 32, 2**18
ADD = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(given)s::json) AS given (
        position int, model text, id uuid, api_key_id uuid, regulation text, received_at timestamptz,
        due_at timestamptz, accepted_at timestamptz, ref text, commitment bytea, supplements text, wrapped_key bytea,
        subject_ref bytea, callback_url bytea, callbacks int, dialect text, subject_request_id uuid, subject bytea,
        traceparent text, idempotency_hash bytea, body_hash bytea, records bytea[], entry bytea)
),
request AS (
    INSERT INTO deletion_requests (id, model_id, api_key_id, regulation, received_at, due_at, accepted_at,
        records_count, ref, commitment, supplements, wrapped_key, subject_ref, callback_url, callbacks, dialect,
        subject_request_id, subject, traceparent, hold, idempotency_hash, body_hash)
    SELECT given.id, model.id, api_key_id, regulation, received_at, due_at, accepted_at, cardinality(records), ref,
        commitment, supplements, wrapped_key, subject_ref, callback_url, callbacks, dialect, subject_request_id,
        subject, traceparent,
        CASE WHEN subject IS NOT NULL THEN 'resolve'
             WHEN coalesce((model.policy ->> 'approvals')::int, 0) > 0 THEN 'approval' END,
        idempotency_hash, body_hash
    FROM given CROSS JOIN LATERAL (SELECT id, policy FROM models WHERE name = given.model OFFSET 0) AS model
    ORDER BY idempotency_hash, subject_request_id
    ON CONFLICT DO NOTHING
    RETURNING id, model_id, hold
),
kept AS (
    INSERT INTO records (request_id, position, sealed)
    SELECT given.id, sealed.position - 1, sealed.record
    FROM request JOIN given USING (id), unnest(given.records) WITH ORDINALITY AS sealed (record, position)
    RETURNING 1
)
SELECT id, model_id, hold, audit_append(entry)
FROM (
    SELECT * FROM request JOIN given USING (id)
    WHERE (SELECT count(*) FROM kept) >= 0  -- always: so that everything is stored before the log's lock is taken
    ORDER BY position OFFSET 0
) AS added
"""  # one statement: the log's lock is held for a flush, and not while this process thinks


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request to be stored: its columns and its model's name, its sealed records, its entry in the log."""

    values: Mapping[str, Any]
    records: Sequence[bytes]
    entry: bytes

    @property
    def size(self) -> int:
        """Bytes, without the small ones."""
        return sum(map(len, self.records))


def add(db: Database, new: Sequence[NewRequest]) -> list[tuple[UUID, str | None] | None]:
    """Store new requests, their sealed records and their entries; returns each one's model's id and what it waits for.

    None: there is no such model, or this API key used this Idempotency-Key before; nothing was stored of that one.
    """
    given = [{**n.values, "position": i, "records": n.records, "entry": n.entry} for i, n in enumerate(new)]
    rows = db.statement(ADD, {"given": json.dumps(given, default=_literal)}, "accept")
    stored = {id_: (model_id, hold) for id_, model_id, hold, _ in rows}
    return [stored.get(n.values["id"]) for n in new]


def _literal(value: object) -> str:
    """As PostgreSQL reads it."""
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def intake_of(db: Database) -> Together[NewRequest, tuple[UUID, str | None] | None]:
    """Stores one request, together with those that come at the same time."""
    add_to = partial(add, db)
    return Together(add_to, size=lambda new: new.size, most=AT_ONCE, room=BYTES_AT_ONCE, patience=POOL_SECONDS)
