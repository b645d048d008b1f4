"""A CSV file of people: a deletion request for each row."""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.domain.errors import ClientError

IDENTITIES = ("email", "phone")
COLUMNS = ("text", *IDENTITIES, "name", "reference", "regulation", "received_at")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file, counted from 1 as a spreadsheet does (the header is row 1), and the request that it makes."""

    number: int
    request: dict[str, object]


def parse_rows(lines: Iterable[str], fields: Mapping[str, object]) -> list[Row]:
    """The rows of a CSV file, each with the fields that all requests share. Skips rows without a value.

    Raises:
        ClientError: The form of the file is wrong. The message names row or column, never a value.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(lines, strict=True)
    try:
        columns = _check_header(next(reader, []))
        rows = [
            Row(number, {**fields, **_request_fields(number, columns, cells)})
            for number, cells in enumerate(reader, 2)
            if any(cell.strip() for cell in cells)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClientError(f"it is not CSV in UTF-8 ({type(error).__name__})") from error
    if not rows:
        raise ClientError("there is no row below the header")
    return [Row(row.number, {name: value for name, value in row.request.items() if value is not None}) for row in rows]


def _check_header(header: Sequence[str]) -> list[str]:
    """The names of the columns. A misspelled one is an error: a deadline that is ignored is worse than a stop."""
    columns = [name.strip().lower() for name in header]
    for position, name in enumerate(columns, 1):
        if name not in COLUMNS or columns.index(name) + 1 != position:
            raise ClientError(f"column {position} must be one of {', '.join(COLUMNS)}, and each only once")
    if not {"text", "name", *IDENTITIES} & set(columns):
        raise ClientError("a column text, email, phone or name is needed")
    return columns


def _request_fields(number: int, columns: Sequence[str], cells: Sequence[str]) -> dict[str, object]:
    """The fields of the request that a row makes. An empty cell is no field."""
    if len(cells) > len(columns):
        raise ClientError(f"row {number} has more cells than the header")
    values = {name: cell for name, cell in zip(columns, cells, strict=False) if cell.strip()}
    fields: dict[str, object] = {
        name: values[name].strip() for name in ("reference", "regulation", "received_at") if name in values
    }
    if "text" in values:
        fields["records"] = [{"text": values["text"]}]
    identities = [{"type": kind, "value": values[kind].strip()} for kind in IDENTITIES if kind in values]
    names = [values["name"].strip()] if "name" in values else []
    if identities or names:
        fields["subject"] = {"identities": identities, "names": names}
    return fields


def row_keys(rows: Sequence[Row], prefix: str) -> list[str]:
    """An idempotency key for each row, from its content: a row that was corrected, or moved, changes no other key."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        content = json.dumps(row.request, sort_keys=True)
        seen[content] += 1  # two equal rows are two requests
        keys.append(hashlib.sha256(f"{prefix}\n{seen[content]}\n{content}".encode()).hexdigest())
    return keys
