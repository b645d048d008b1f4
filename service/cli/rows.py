"""A CSV file of people: a deletion request for each row, submitted in bulk."""

import csv
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.cli.connection import connect, create_private, progress_bars
from service.cli.console import print_message, show
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client.answers import BulkResult
    from service.client.http import Client

IDENTITIES = ("email", "phone")
COLUMNS = ("text", *IDENTITIES, "name", "reference", "regulation", "received_at")
MAX_ROWS, MAX_BYTES = 200, 2**20  # of a call; a row that is larger goes alone
RETRY_SECONDS = (1, 5, 20, 60)  # before rows that the service refused for now are sent again
REFUSED_FOR_NOW = (429, 503)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file, counted from 1 as a spreadsheet does (the header is row 1), and the request that it makes."""

    number: int
    request: dict[str, object]


def read_rows(file: Path, fields: Mapping[str, object]) -> list[Row]:
    """The rows of a CSV file, each with the fields that all requests share. Skips rows without a value.

    Raises:
        ClientError: The file cannot be read, or its form is wrong. The message names row or column, never a value.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            columns = _check_header(next(reader, []))
            rows = [
                Row(number, {**fields, **_request_fields(number, columns, cells)})
                for number, cells in enumerate(reader, 2)
                if any(cell.strip() for cell in cells)
            ]
    except OSError as error:
        raise ClientError(f"--file: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClientError(f"--file: it is not CSV in UTF-8 ({type(error).__name__})") from error
    if not rows:
        raise ClientError("--file: there is no row below the header")
    return [Row(row.number, {name: value for name, value in row.request.items() if value is not None}) for row in rows]


def _check_header(header: Sequence[str]) -> list[str]:
    """The names of the columns. A misspelled one is an error: a deadline that is ignored is worse than a stop."""
    columns = [name.strip().lower() for name in header]
    for position, name in enumerate(columns, 1):
        if name not in COLUMNS or columns.index(name) + 1 != position:
            raise ClientError(f"--file: column {position} must be one of {', '.join(COLUMNS)}, and each only once")
    if not {"text", "name", *IDENTITIES} & set(columns):
        raise ClientError("--file: a column text, email, phone or name is needed")
    return columns


def _request_fields(number: int, columns: Sequence[str], cells: Sequence[str]) -> dict[str, object]:
    """The fields of the request that a row makes. An empty cell is no field."""
    if len(cells) > len(columns):
        raise ClientError(f"--file: row {number} has more cells than the header")
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


def submit_rows(
    file: Path, rows: Sequence[Row], prefix: str | None, receipts: Path | None, *, as_json: bool = False
) -> None:
    """Submit all rows, write the receipts of those that were accepted, and name those that were refused.

    Raises:
        typer.Exit: A row was refused.
    """
    prefix = prefix or hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    path = receipts or Path(f"receipts-{file.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.jsonl")
    answers: list[dict[str, object]] = []
    with create_private(path) as handle, progress_bars(hidden=as_json) as bars:
        bar = bars.add_task(f"{len(rows)} rows", total=len(rows))
        for row, result in _results(connect(), rows, _keys(rows, prefix)):
            answer: dict[str, object] = {"row": row.number, **result}
            del answer["index"]
            if receipt := answer.pop("receipt", None):
                handle.write(json.dumps({**answer, "receipt": receipt}) + "\n")
            answers.append(answer)
            bars.advance(bar)
    refused = [answer for answer in answers if "problem" in answer]
    if as_json:
        print(json.dumps(answers))
    else:
        _print_refused(refused)
        show({"accepted": len(rows) - len(refused), "refused": len(refused)}, as_json)
    print_message(f"The receipts are in {path}, one a line. Keep them: the service gives them only once.")
    if refused:
        print_message(f"Correct the rows and submit the file again with --idempotency-prefix {prefix}.")
        raise typer.Exit(1)


def _keys(rows: Sequence[Row], prefix: str) -> list[str]:
    """An idempotency key for each row, from its content: a row that was corrected, or moved, changes no other key."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        content = json.dumps(row.request, sort_keys=True)
        seen[content] += 1  # two equal rows are two requests
        keys.append(hashlib.sha256(f"{prefix}\n{seen[content]}\n{content}".encode()).hexdigest())
    return keys


def _results(client: "Client", rows: Sequence[Row], keys: Sequence[str]) -> Iterator[tuple[Row, "BulkResult"]]:
    """Submit the rows in calls of bounded size; yield each with its result."""
    lines = [{**row.request, "idempotency_key": key} for row, key in zip(rows, keys, strict=True)]
    sizes = [len(json.dumps(line)) for line in lines]
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and end - start < MAX_ROWS and sum(sizes[start : end + 1]) <= MAX_BYTES:
            end += 1
        yield from zip(rows[start:end], _submit(client, lines[start:end]), strict=True)
        start = end


def _submit(client: "Client", lines: Sequence[Mapping[str, object]]) -> list["BulkResult"]:
    """The results of one call. Sends lines again that the service refused for now, a few times."""
    results: list[BulkResult] = client.submit_many(lines)
    for seconds in RETRY_SECONDS:
        again = [index for index, result in enumerate(results) if result["status"] in REFUSED_FOR_NOW]
        if not again:
            break
        time.sleep(seconds)
        for index, result in zip(again, client.submit_many([lines[index] for index in again]), strict=True):
            results[index] = result
    return results


def _print_refused(refused: Sequence[Mapping[str, object]]) -> None:
    """A line for each row that was refused: its number and what is wrong."""
    from service.client.operations import problem_message

    for answer in refused:
        print_message(f"row {answer['row']}: {problem_message(answer['problem'])}", "red")
