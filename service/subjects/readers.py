"""Training corpora, read one record at a time, each with the place where it can be read again.

A corpus stays where its owner keeps it; the index has places in it. JSON lines, CSV, Parquet (with unlearnd[parquet]),
plain lines, or a folder of text files, one record each.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ROWS_AT_ONCE = 256
LARGEST = 4 << 20  # bytes of a record; what is larger is taken for a file of another form


class UnreadableCorpus(ValueError):
    """The corpus has not the form it should have; the message names a place, never content."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: bytes in the file, or for Parquet a row's number.

    Of a folder, `file` is the file's number in the order of names: a name may be somebody's, and is written nowhere.
    """

    file: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Row:
    """A record: its place, its text, and its other columns as strings."""

    place: Place
    text: str
    columns: dict[str, str]


@dataclass(frozen=True)
class CorpusReader:
    """How a corpus is read."""

    path: Path
    form: str
    text_column: str = "text"

    def rows(self, after: Place | None = None) -> Iterator[Row]:
        """Every record behind `after`, in the order of their places; holds a few in memory.

        Raises:
            UnreadableCorpus: A record has no text, or the file is of another form.
            OSError: It is not there.
        """
        first = after.file if after is not None else 0
        for number in range(first, len(self.files)):
            start = after.end if after is not None and number == first else 0
            try:
                yield from (row for row in READERS[self.form](self, number, start, None) if row.text.strip())
            except csv.Error as error:  # its messages name characters, never content
                raise UnreadableCorpus(f"{self.path.name} is not CSV: {error}") from error
            except UnicodeDecodeError as error:
                where = f"file {number + 1} in the order of names" if self.form == "folder" else self.path.name
                raise UnreadableCorpus(f"{where} is not {self.form} in UTF-8") from error

    def read(self, place: Place) -> Row:
        """The record at a place.

        Raises:
            UnreadableCorpus: There is none any more.
            OSError: The file is not there.
        """
        try:
            return next(iter(READERS[self.form](self, place.file, place.start, place.length)))
        except (StopIteration, IndexError, UnicodeDecodeError, csv.Error) as error:
            raise UnreadableCorpus(f"there is no record at {place.start}") from error

    def size(self) -> int:
        """Bytes (rows of a Parquet file, files of a folder) in all, for a progress bar."""
        if self.form == "parquet":
            return int(_parquet(self.path).metadata.num_rows)
        return len(self.files) if self.form == "folder" else self.path.stat().st_size

    def done(self, place: Place | None) -> int:
        """How much of `size` lies before the end of `place`."""
        if place is None:
            return 0
        return place.file + 1 if self.form == "folder" else place.end

    @cached_property
    def files(self) -> list[Path]:
        """Its files, in the order of their names."""
        if self.form != "folder":
            return [self.path]
        return sorted(p for p in self.path.rglob("*") if p.is_file())

    def columns(self) -> set[str]:
        """The columns of its first record, its header or its schema."""
        if self.form == "parquet":
            return set(_parquet(self.path).schema_arrow.names)
        row = next(self.rows(), None)
        return {self.text_column, *row.columns} if row else set()

    def row_of(self, place: Place, columns: dict[str, Any]) -> Row:
        """The text and the other columns of what lies at a place.

        Raises:
            UnreadableCorpus: There is no such column.
        """
        text = columns.get(self.text_column)
        if not isinstance(text, str):
            raise UnreadableCorpus(f"the record at {place.start} has no text in the column {self.text_column}")
        rest = {k: _cell(v) for k, v in columns.items() if k != self.text_column}
        return Row(place, _whole(text), rest)


def _cell(value: Any) -> str:
    """A column's value as it is compared: whole numbers are whole, whatever a table made of them; nothing is ""."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _whole(str(value)) if isinstance(value, str | int | float) else ""


def _whole(text: str) -> str:
    """Without halves of characters, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def detect_form(path: Path) -> str:
    """What a path seems to be: jsonl, csv, parquet, lines, or a folder of texts."""
    return "folder" if path.is_dir() else SUFFIXES.get(path.suffix.lower(), "lines")


def _lines(corpus: CorpusReader, name: int, start: int, length: int | None) -> Iterator[Row]:
    for place, line in _pieces(corpus, name, start, length):
        if text := line.decode().rstrip("\r\n"):
            yield Row(place, text, {})


def _jsonl(corpus: CorpusReader, name: int, start: int, length: int | None) -> Iterator[Row]:
    for place, line in _pieces(corpus, name, start, length):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UnreadableCorpus(f"what begins at byte {place.start} is not a JSON object")
        yield corpus.row_of(place, found)


def _pieces(corpus: CorpusReader, name: int, start: int, length: int | None) -> Iterator[tuple[Place, bytes]]:
    """Each line with its place, from `start` on; the one at `start` if a length is given."""
    with corpus.files[name].open("rb") as handle:
        handle.seek(start)
        if length is not None:
            yield Place(name, start, length), handle.read(length)
            return
        while line := handle.readline(LARGEST + 1):
            if len(line) > LARGEST:
                raise UnreadableCorpus(f"the record at byte {start} is larger than {LARGEST} bytes")
            yield Place(name, start, len(line)), line
            start += len(line)


def _csv(corpus: CorpusReader, name: int, start: int, length: int | None) -> Iterator[Row]:
    """A record may span lines: its place is all bytes that the parser took for it."""
    csv.field_size_limit(LARGEST)  # one quote too many would make the rest of the file a cell
    with corpus.files[name].open("rb") as handle:
        taken = _Taken(handle, -1)
        header = next(csv.reader(taken, strict=True), [])
        if corpus.text_column not in header:
            raise UnreadableCorpus(f"the CSV file has no column {corpus.text_column}")
        if start > taken.bytes:
            handle.seek(start)
            taken.bytes = start
        taken.left = -1 if length is None else length
        before = taken.bytes
        for values in csv.reader(taken, strict=True):
            place, before = Place(name, before, taken.bytes - before), taken.bytes
            if values:
                yield corpus.row_of(place, dict(zip(header, values, strict=False)))


class _Taken:
    """Lines of a file as text, counting the bytes that were taken; no more than `left`, unless that is negative."""

    def __init__(self, handle: IO[bytes], left: int) -> None:
        self._handle, self.bytes, self.left = handle, 0, left

    def __iter__(self) -> "_Taken":
        return self

    def __next__(self) -> str:
        line = self._handle.readline() if self.left else b""
        if not line:
            raise StopIteration
        self.bytes += len(line)
        self.left -= len(line) if self.left > 0 else 0
        return line.decode("utf-8-sig" if self.bytes == len(line) else "utf-8")


def _folder(corpus: CorpusReader, name: int, start: int, _: int | None) -> Iterator[Row]:
    if corpus.files[name].stat().st_size > LARGEST:
        raise UnreadableCorpus(f"file {name + 1} in the order of names is larger than {LARGEST} bytes")
    content = corpus.files[name].read_bytes()
    if start == 0 and content.strip():
        yield Row(Place(name, 0, len(content)), content.decode(), {})


def _parquet_rows(corpus: CorpusReader, _: int, start: int, length: int | None) -> Iterator[Row]:
    file, number = _parquet(corpus.path), 0
    if corpus.text_column not in file.schema_arrow.names:
        raise UnreadableCorpus(f"the Parquet file has no column {corpus.text_column}")
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
            passed = min(max(0, start - number), batch.num_rows)
            for columns in batch.slice(passed).to_pylist():
                yield corpus.row_of(Place(0, number + passed, 1), columns)
                passed += 1
            number += batch.num_rows


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UnreadableCorpus("Parquet needs the extra unlearnd[parquet] on the server") from error
    return parquet.ParquetFile(path)


READERS: dict[str, Callable[[CorpusReader, int, int, int | None], Iterator[Row]]] = {
    "jsonl": _jsonl, "csv": _csv, "parquet": _parquet_rows, "lines": _lines, "folder": _folder,
}  # fmt: skip
