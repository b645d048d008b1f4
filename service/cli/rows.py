"""A CSV file of people: a deletion request for each row, submitted in bulk."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.cli.connection import connect, create_private, progress_bars
from service.cli.console import print_message, show
from service.csv_rows import Row, parse_rows, row_keys
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client.answers import BulkResult
    from service.client.http import Client

MAX_ROWS, MAX_BYTES = 200, 2**20  # of a call; a row that is larger goes alone
RETRY_SECONDS = (1, 5, 20, 60)  # before rows that the service refused for now are sent again
REFUSED_FOR_NOW = (429, 503)


def read_rows(file: Path, fields: Mapping[str, object]) -> list[Row]:
    """The rows of a CSV file, as `parse_rows` reads them.

    Raises:
        ClientError: The file cannot be read, or its form is wrong. The message names row or column, never a value.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            return parse_rows(handle, fields)
    except OSError as error:
        raise ClientError(f"--file: {error.strerror}") from error
    except ClientError as error:
        raise ClientError(f"--file: {error}") from error


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
        for row, result in _results(connect(), rows, row_keys(rows, prefix)):
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
