"""New requests, stored together in one statement."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql

from service.db.group_commit import GroupCommit
from service.db.session import POOL_SECONDS, Database
from service.db.tables import DeletionRequest

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
AT_ONCE, BYTES_AT_ONCE = 32, 2**18
UNIQUE = {"idempotency_hash", "subject_request_id"}  # rows are inserted in their order: no two groups deadlock
DERIVED = {  # columns that the statement itself gives, and how
    "model_id": "model.id",
    "records_count": "cardinality(records)",
    "hold": """CASE WHEN subject IS NOT NULL THEN 'resolve'
             WHEN coalesce((model.policy ->> 'approvals')::int, 0) > 0 THEN 'approval' END""",
}
# One statement: the log's lock is held for a flush, and not while this process thinks.
STATEMENT = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(given)s::json) AS given (
        position int, model text, records bytea[], entry bytea, {declared})
),
request AS (
    INSERT INTO deletion_requests ({columns})
    SELECT {values}
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
"""


@cache
def statement(columns: tuple[str, ...]) -> str:
    """The SQL that stores requests with values in these columns; their types are the table's."""
    types = {c.name: c.type.compile(dialect=DIALECT) for c in DeletionRequest.__table__.columns}
    values = {name: f"given.{name}" for name in columns} | DERIVED
    return STATEMENT.format(
        declared=", ".join(f"{name} {types[name]}" for name in columns),
        columns=", ".join(values),
        values=", ".join(values.values()),
    )


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request to be stored, its model's name, its sealed records, its entry in the log."""

    request: DeletionRequest
    model: str
    records: Sequence[bytes]
    entry: bytes

    @property
    def size(self) -> int:
        """Bytes, without the small ones."""
        return sum(map(len, self.records))


def insert_requests(db: Database, new: Sequence[NewRequest]) -> list[tuple[UUID, str | None] | None]:
    """Store new requests, their sealed records and their entries.

    Returns:
        For each its model's id and what it waits for; None if there is no such model, or this API key used this
        Idempotency-Key before: then nothing was stored of it.
    """
    columns = _given_columns([n.request for n in new])
    given = [
        {
            **{name: getattr(n.request, name) for name in columns},
            "position": i,
            "model": n.model,
            "records": n.records,
            "entry": n.entry,
        }
        for i, n in enumerate(new)
    ]
    rows = db.statement(statement(columns), {"given": json.dumps(given, default=_literal)}, "accept")
    stored = {id_: (model_id, hold) for id_, model_id, hold, _ in rows}
    return [stored.get(n.request.id) for n in new]


def _given_columns(requests: Sequence[DeletionRequest]) -> tuple[str, ...]:
    """The columns that were given a value in any of the requests, in the table's order."""
    given = UNIQUE.union(*(inspect(request).dict for request in requests))
    return tuple(c.name for c in DeletionRequest.__table__.columns if c.name in given and c.name not in DERIVED)


def _literal(value: object) -> str:
    """As PostgreSQL reads it."""
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def request_intake(db: Database) -> GroupCommit[NewRequest, tuple[UUID, str | None] | None]:
    """Stores one request, together with those that come at the same time."""
    add_to = partial(insert_requests, db)
    return GroupCommit(add_to, size=lambda new: new.size, most=AT_ONCE, room=BYTES_AT_ONCE, patience=POOL_SECONDS)
