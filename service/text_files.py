"""Files of texts, as an operator or a submitter has them: JSON lines, CSV, or one text a line."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class UnreadableTexts(ValueError):
    """The file has a form that is not supported. The message names a line, never its content."""


def read_texts(file: Path) -> Iterator[str]:
    """The texts of a file, as `parse_texts` reads them.

    Raises:
        OSError: The file cannot be opened. Further errors are those of `parse_texts`.
    """
    with file.open("rb") as handle:
        yield from parse_texts(handle, file.suffix)


def parse_texts(file: BinaryIO, suffix: str) -> Iterator[str]:
    """Non-empty texts of JSONL or CSV with a `text` column, or of plain lines. `suffix` ends the file's name.

    Raises:
        UnreadableTexts: A line lacks `text` or is not JSON.
        UnicodeDecodeError: The file is not UTF-8.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with io.TextIOWrapper(file, encoding="utf-8", newline="" if suffix == ".csv" else None) as handle:
        if suffix == ".csv":
            rows = csv.DictReader(handle)
            if "text" not in (rows.fieldnames or []):
                raise UnreadableTexts("The CSV file has no column named text.")
            texts = (row["text"] or "" for row in rows)
        elif suffix in {".jsonl", ".json", ".ndjson"}:
            texts = (_json_text(line, number) for number, line in enumerate(handle, 1) if line.strip())
        else:
            texts = (line.rstrip("\n") for line in handle)
        yield from (text for text in texts if text.strip())


def _json_text(line: str, number: int) -> str:
    """The `text` of a line that holds a JSON object."""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise UnreadableTexts(f"Line {number} is not a JSON object with a text.")
    return text
