"""Storing new requests: one statement stores all requests of a group."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql

from service.db.group_commit import GroupCommit
from service.db.session import POOL_SECONDS, Database
from service.db.tables import DeletionRequest

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
MAX_REQUESTS, MAX_BYTES = 32, 2**18  # of a group
UNIQUE = {"idempotency_hash", "subject_request_id"}  # the insert is in their order, so that no two groups deadlock
DERIVED = {  # columns that the statement computes -> its expressions
    "model_id": "model.id",
    "records_count": "cardinality(records)",
    "hold": """CASE WHEN subject IS NOT NULL THEN 'resolve'
             WHEN coalesce((model.policy ->> 'approvals')::int, 0) > 0 THEN 'approval' END""",
}
# One statement: the server holds the log's lock for a flush only, and not while this process computes.
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
    WHERE (SELECT count(*) FROM kept) >= 0  -- always true: everything is stored before the log's lock is taken
    ORDER BY position OFFSET 0
) AS added
"""


@cache
def statement(columns: tuple[str, ...]) -> str:
    """The SQL that stores requests with values in these columns. The columns' types come from the table."""
    types = {column.name: column.type.compile(dialect=DIALECT) for column in DeletionRequest.__table__.columns}
    values = {name: f"given.{name}" for name in columns} | DERIVED
    return STATEMENT.format(
        declared=", ".join(f"{name} {types[name]}" for name in columns),
        columns=", ".join(values),
        values=", ".join(values.values()),
    )


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request to be stored, with its model's name, its sealed records and its entry in the log."""

    request: DeletionRequest
    model: str
    records: Sequence[bytes]
    entry: bytes

    @property
    def size(self) -> int:
        """The bytes of the records and probes; everything else is small."""
        return sum(map(len, self.records)) + len(self.request.probes or b"")


def insert_requests(db: Database, new: Sequence[NewRequest]) -> list[tuple[UUID, str | None] | None]:
    """Store new requests, their sealed records and their log entries.

    Returns:
        For each request the id of its model and its hold. None if nothing of the request was stored, because the model
        does not exist, the API key used the Idempotency-Key before, or the subject request id is taken.
    """
    members = [
        inspect(item.request).dict for item in new
    ]  # faster than the attributes, each of which SQLAlchemy watches
    columns = _given_columns(members)
    given = [
        {
            **{name: of_request.get(name) for name in columns},
            "position": position,
            "model": item.model,
            "records": item.records,
            "entry": item.entry,
        }
        for position, (item, of_request) in enumerate(zip(new, members, strict=True))
    ]
    rows = db.statement(statement(columns), {"given": json.dumps(given, default=_postgres_text)}, "accept")
    stored = {request_id: (model_id, hold) for request_id, model_id, hold, _ in rows}
    return [stored.get(item.request.id) for item in new]


def _given_columns(members: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """The columns that have a value in any of the requests, in the table's order."""
    given = UNIQUE.union(*members) - DERIVED.keys()
    return tuple(column.name for column in DeletionRequest.__table__.columns if column.name in given)


def _postgres_text(value: object) -> str:
    """A value in the text form that PostgreSQL reads."""
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def request_intake(db: Database) -> GroupCommit[NewRequest, tuple[UUID, str | None] | None]:
    """A function that stores one request, in a group with requests that arrive at the same time."""
    insert = partial(insert_requests, db)
    return GroupCommit(
        insert, size=lambda new: new.size, max_items=MAX_REQUESTS, max_bytes=MAX_BYTES, timeout_seconds=POOL_SECONDS
    )
