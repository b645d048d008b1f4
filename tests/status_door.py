"""Watches the SQL of a test: a status or a stage changes through the state table's door, and in no other way.

`requests.move` and `jobs.advance` ask the table and write `UPDATE ... SET status = new WHERE ... AND status = old`. The
watch reads old and new from the statement's parameters and asks the tables again, so that it also finds a door that was
left open. Every other form of a write is refused, whatever code it comes from.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Engine, event

from service.domain.states import (
    REQUEST_TRANSITIONS,
    RESTORE_STAGE_TRANSITIONS,
    RESTORE_TRANSITIONS,
    STAGE_TRANSITIONS,
)

COLUMNS = {"deletion_requests": "status", "jobs": "stage"}
INITIAL = {"deletion_requests": "pending", "jobs": "queued"}
TABLES = {
    "deletion_requests": (REQUEST_TRANSITIONS, RESTORE_TRANSITIONS),
    "jobs": (STAGE_TRANSITIONS, RESTORE_STAGE_TRANSITIONS),
}
LEGAL = {
    name: {(old, new) for table in tables for old, targets in table.items() for new in targets}
    for name, tables in TABLES.items()
}
TABLE = r'(?:ONLY\s+)?(?:"?public"?\.)?"?(?P<table>deletion_requests|jobs)"?\b'
UPDATE = re.compile(rf"\bUPDATE\s+{TABLE}.*?\bSET\b(?P<values>.*?)(?:\bWHERE\b(?P<where>.*))?\Z", re.DOTALL | re.I)
INSERT = re.compile(rf"\bINSERT\s+INTO\s+{TABLE}\s*\((?P<columns>.*?)\)(?P<rest>.*)\Z", re.DOTALL | re.I)
PARAMETER = r"%\((\w+)\)s"
_planting = False


class BypassedTable(AssertionError):
    """A status was written past the state table."""


def check(statement: str, parameters: Mapping[str, object]) -> None:
    """Refuse a write of a status or stage that is not a legal move, guarded by the value before.

    Raises:
        BypassedTable: It is not.
    """
    if (update := UPDATE.search(statement)) and _writes(update["table"], update["values"]):
        column = COLUMNS[update["table"]]
        new = re.search(rf"\b{column}\s*=\s*{PARAMETER}", update["values"])
        old = re.search(rf"\b{update['table']}\.{column}\s*=\s*{PARAMETER}", update["where"] or "")
        move = (parameters.get(old[1]), parameters.get(new[1])) if old and new else None
        if move not in LEGAL[update["table"]]:
            raise BypassedTable(f"{move}: {statement}")
    if insert := INSERT.search(statement):
        column = COLUMNS[insert["table"]]
        given = re.search(rf"\b{column}\b", insert["columns"]) and parameters.get(column)
        upsert = re.search(rf"DO UPDATE SET.*\b{column}\s*=", insert["rest"], re.DOTALL)
        if upsert or given not in (None, INITIAL[insert["table"]]):
            raise BypassedTable(statement)


def _writes(table: str, values: str) -> bool:
    return re.search(rf'"?\b{COLUMNS[table]}"?\s*=', values) is not None


@contextmanager
def planting() -> Iterator[None]:
    """A test puts rows into a state that the service has not brought about."""
    global _planting
    _planting = True
    try:
        yield
    finally:
        _planting = False


def watch(engine: Engine) -> None:
    """Check every statement of an engine from now on."""

    @event.listens_for(engine, "before_cursor_execute")
    def _check(_connection, _cursor, statement, parameters, _context, _many) -> None:
        if not _planting:
            for values in parameters if isinstance(parameters, list | tuple) else [parameters or {}]:
                check(statement, values)
