"""Watches the SQL of a test: a write of a status or a stage must name the one before, as the state table's door does.

`requests.move` and `jobs.advance` ask the table and write `UPDATE ... SET status = new WHERE ... AND status = old`. Any
other write lacks the guard, so that it is found whatever code it comes from.
"""

import re

from sqlalchemy import Engine, event

COLUMNS = {"deletion_requests": "status", "jobs": "stage"}
UPDATE = re.compile(r"\s*UPDATE (?P<table>\w+) SET (?P<values>.*?)(?: WHERE (?P<where>.*))?\Z", re.DOTALL)


class BypassedTable(AssertionError):
    """A status was written past the state table."""


def check(statement: str) -> None:
    """Refuse an UPDATE of a status that is not guarded by the status before.

    Raises:
        BypassedTable: It is not guarded.
    """
    update = UPDATE.match(statement)
    column = COLUMNS.get(update["table"]) if update else None
    if column is None or not re.search(rf"\b{column}\s*=", update["values"]):
        return
    if not re.search(rf"\b{column}\s*=", update["where"] or ""):
        raise BypassedTable(statement)


def watch(engine: Engine) -> None:
    """Check every statement of an engine from now on."""

    @event.listens_for(engine, "before_cursor_execute")
    def _check(_connection, _cursor, statement, *_) -> None:
        check(statement)
