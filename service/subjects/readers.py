"""Reads training corpora one record at a time, each with the place where it can be read again.

A corpus stays where the operator keeps it, and the index stores places in it. A corpus is JSON lines, CSV, Parquet
(with unlearnd[parquet]), plain lines, or a folder of text files with one record each. Somebody may replace a file at
any time, so every reading opens files through the corpus' root.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeAlias

from service.confined import Root

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
PARQUET_BATCH_ROWS = 256
MAX_RECORD_BYTES = 4 << 20  # bytes of a record; a larger one means that the file has another form


class UnreadableCorpus(ValueError):
    """The corpus does not have the form that it should have. The message names a place, never content."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is: its bytes in the file, or the number of its row in Parquet.

    In a folder, `file` is the file's position in the order of names. A file's name may be a person's name, so it is
    stored nowhere.
    """

    file: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """The position after the record, where the next one begins."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Row:
    """A record of a corpus: its place, its text, and its other columns as strings."""

    place: Place
    text: str
    columns: dict[str, str]


@dataclass(frozen=True)
class CorpusReader:
    """Reads the records of one corpus, which lies in `root`."""

    root: Root
    path: Path
    form: str
    text_column: str = "text"

    def rows(self, after: Place | None = None) -> Iterator[Row]:
        """Yield every record after the place `after`, in the order of places, with few in memory at a time.

        Raises:
            UnreadableCorpus: A record has no text, or the file has another form.
            OutsideRoots: A file is no longer in the root.
            OSError: A file cannot be opened.
        """
        first = after.file if after is not None else 0
        for number in range(first, len(self.files)):
            start = after.end if after is not None and number == first else 0
            try:
                yield from (row for row in READERS[self.form](self, number, start, None) if row.text.strip())
            except csv.Error as error:  # its messages never quote content
                raise UnreadableCorpus(f"{self.path.name} is not CSV: {error}") from error
            except UnicodeDecodeError as error:
                where = f"file {number + 1} in the order of names" if self.form == "folder" else self.path.name
                raise UnreadableCorpus(f"{where} is not {self.form} in UTF-8") from error

    def read(self, place: Place) -> Row:
        """Read the record at a place again.

        Raises:
            UnreadableCorpus: There is no record any more.
            OSError: The file cannot be opened.
        """
        try:
            return next(iter(READERS[self.form](self, place.file, place.start, place.length)))
        except (StopIteration, IndexError, UnicodeDecodeError, csv.Error) as error:
            raise UnreadableCorpus(f"there is no record at {place.start}") from error

    def size(self) -> int:
        """The size of the corpus for a progress bar: bytes, rows of a Parquet file, or files of a folder."""
        if self.form == "parquet":
            with self.parquet() as file:
                return int(file.metadata.num_rows)
        if self.form == "folder":
            return len(self.files)
        with self.open(0) as file:
            return file.seek(0, io.SEEK_END)

    def done(self, place: Place | None) -> int:
        """The part of `size` up to the end of `place`."""
        if place is None:
            return 0
        return place.file + 1 if self.form == "folder" else place.end

    @cached_property
    def files(self) -> list[Path]:
        """The files of the corpus, in the order of their names."""
        if self.form != "folder":
            return [self.path]
        return self.root.files(self.path)

    def open(self, number: int) -> BinaryIO:
        """Open the file with this number."""
        return self.root.open(self.files[number])

    @contextmanager
    def parquet(self) -> "Iterator[ParquetFile]":
        """The corpus as a Parquet file, open.

        Raises:
            UnreadableCorpus: The file is not Parquet, or the extra is not installed.
        """
        try:
            from pyarrow import ArrowInvalid
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise UnreadableCorpus("Parquet needs the extra unlearnd[parquet] on the server") from error
        with self.open(0) as handle:
            try:
                file = ParquetFile(handle)
            except ArrowInvalid as error:
                raise UnreadableCorpus(f"{self.path.name} is not Parquet") from error
            yield file

    def columns(self) -> set[str]:
        """The columns of the corpus, from its first record, its header or its schema."""
        if self.form == "parquet":
            with self.parquet() as file:
                return set(file.schema_arrow.names)
        row = next(self.rows(), None)
        return {self.text_column, *row.columns} if row else set()

    def make_row(self, place: Place, columns: dict[str, object]) -> Row:
        """Split a record's columns into its text and the others.

        Raises:
            UnreadableCorpus: The text column is missing, or is not text.
        """
        text = columns.get(self.text_column)
        if not isinstance(text, str):
            raise UnreadableCorpus(f"the record at {place.start} has no text in the column {self.text_column}")
        others = {name: _comparable(value) for name, value in columns.items() if name != self.text_column}
        return Row(place, _replace_surrogates(text), others)


def _comparable(value: object) -> str:
    """A column's value as a string: 7.0, which some tables make of an id, is "7"; null and nested values are ""."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _replace_surrogates(str(value)) if isinstance(value, str | int | float) else ""


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def detect_form(root: Root, path: Path) -> str:
    """Guess the form of a corpus from its path: jsonl, csv, parquet, lines, or folder."""
    return "folder" if root.is_folder(path) else SUFFIXES.get(path.suffix.lower(), "lines")


def _lines(corpus: CorpusReader, number: int, start: int, length: int | None) -> Iterator[Row]:
    for place, line in _located_lines(corpus, number, start, length):
        if text := line.decode().rstrip("\r\n"):
            yield Row(place, text, {})


def _jsonl(corpus: CorpusReader, number: int, start: int, length: int | None) -> Iterator[Row]:
    for place, line in _located_lines(corpus, number, start, length):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError):  # it is nested too deeply
            columns = None
        if not isinstance(columns, dict):
            raise UnreadableCorpus(f"what begins at byte {place.start} is not a JSON object")
        yield corpus.make_row(place, columns)


def _located_lines(corpus: CorpusReader, number: int, start: int, length: int | None) -> Iterator[tuple[Place, bytes]]:
    """Yield each line with its place, from `start` on; with a `length`, only the line at `start`."""
    with corpus.open(number) as handle:
        handle.seek(start)
        if length is not None:
            yield Place(number, start, length), handle.read(length)
            return
        while line := handle.readline(MAX_RECORD_BYTES + 1):
            if len(line) > MAX_RECORD_BYTES:
                raise UnreadableCorpus(f"the record at byte {start} is larger than {MAX_RECORD_BYTES} bytes")
            yield Place(number, start, len(line)), line
            start += len(line)


def _csv(corpus: CorpusReader, number: int, start: int, length: int | None) -> Iterator[Row]:
    """A record may span lines. Its place is all bytes that the parser read for it."""
    csv.field_size_limit(MAX_RECORD_BYTES)  # an unbalanced quote would make the rest of the file one cell
    with corpus.open(number) as handle:
        lines = _CountedLines(handle)
        header = next(csv.reader(lines, strict=True), [])
        if corpus.text_column not in header:
            raise UnreadableCorpus(f"the CSV file has no column {corpus.text_column}")
        if start > lines.bytes_read:
            handle.seek(start)
            lines.bytes_read = start
        lines.bytes_left = length
        end = lines.bytes_read
        for values in csv.reader(lines, strict=True):
            place, end = Place(number, end, lines.bytes_read - end), lines.bytes_read
            if values:
                yield corpus.make_row(place, dict(zip(header, values, strict=False)))


class _CountedLines:
    """The lines of a file as text. Counts the bytes that it reads, and ends when `bytes_left` is 0 (None: no limit)."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle, self.bytes_read = handle, 0
        self.bytes_left: int | None = None

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = b"" if self.bytes_left == 0 else self._handle.readline()
        if not line:
            raise StopIteration
        self.bytes_read += len(line)
        if self.bytes_left is not None:
            self.bytes_left = max(0, self.bytes_left - len(line))
        return line.decode("utf-8-sig" if self.bytes_read == len(line) else "utf-8")


def _folder(corpus: CorpusReader, number: int, start: int, _: int | None) -> Iterator[Row]:
    with corpus.open(number) as handle:
        content = handle.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise UnreadableCorpus(f"file {number + 1} in the order of names is larger than {MAX_RECORD_BYTES} bytes")
    if start == 0 and content.strip():
        yield Row(Place(number, 0, len(content)), content.decode(), {})


def _parquet_rows(corpus: CorpusReader, _: int, start: int, length: int | None) -> Iterator[Row]:
    with corpus.parquet() as file:
        if corpus.text_column not in file.schema_arrow.names:
            raise UnreadableCorpus(f"the Parquet file has no column {corpus.text_column}")
        group_start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if group_start + rows <= start:
                group_start += rows
                continue
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group]):
                skipped = min(max(0, start - group_start), batch.num_rows)
                for number, columns in enumerate(batch.slice(skipped).to_pylist(), group_start + skipped):
                    yield corpus.make_row(Place(0, number, 1), columns)
                group_start += batch.num_rows


# Yields the records of the file with this number, from a start on; with a length, only the record at the start.
FileReader: TypeAlias = Callable[[CorpusReader, int, int, int | None], Iterator[Row]]
READERS: dict[str, FileReader] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet_rows,
    "lines": _lines,
    "folder": _folder,
}
