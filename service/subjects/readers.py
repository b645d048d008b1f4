"""Training corpora, read one record at a time, each with the place where it can be read again.

A corpus stays where its owner keeps it; the index has places in it. JSON lines, CSV, Parquet (with unlearnd[parquet]),
plain lines, or a folder of text files, one record each.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ROWS_AT_ONCE = 256


class UnreadableCorpus(ValueError):
    """The corpus has not the form it should have; the message names a place, never content."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: a file below a folder ("" for a file), and bytes in it, or for Parquet a row's number."""

    file: str
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


@dataclass(frozen=True, slots=True)
class Corpus:
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
        for name in self._files():
            if after is not None and name < after.file:
                continue
            start = after.end if after is not None and name == after.file else 0
            try:
                yield from (row for row in READERS[self.form](self, name, start, None) if row.text.strip())
            except (UnicodeDecodeError, csv.Error) as error:
                raise UnreadableCorpus(f"{name or self.path.name} is not {self.form} in UTF-8") from error

    def read(self, place: Place) -> Row:
        """The record at a place.

        Raises:
            UnreadableCorpus: There is none any more.
            OSError: The file is not there.
        """
        try:
            return next(iter(READERS[self.form](self, place.file, place.start, place.length)))
        except (StopIteration, UnicodeDecodeError, csv.Error) as error:
            raise UnreadableCorpus(f"{place.file or self.path.name}: there is no record at {place.start}") from error

    def size(self) -> int:
        """Bytes in all (rows of a Parquet file), for a progress bar."""
        if self.form == "parquet":
            return int(_parquet(self.path).metadata.num_rows)
        return sum((self.path / name).stat().st_size for name in self._files())

    def done(self, place: Place | None) -> int:
        """How much of `size` lies before the end of `place`."""
        if place is None:
            return 0
        return place.end + sum((self.path / name).stat().st_size for name in self._files() if name < place.file)

    def file(self, name: str) -> Path:
        """A file of the corpus."""
        return self.path / name if name else self.path

    def _files(self) -> list[str]:
        if self.form != "folder":
            return [""]
        return sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())

    def row_of(self, place: Place, columns: dict[str, Any]) -> Row:
        """The text and the other columns of what lies at a place.

        Raises:
            UnreadableCorpus: There is no such column.
        """
        text = columns.get(self.text_column)
        if not isinstance(text, str):
            raise UnreadableCorpus(f"the record at {place.start} has no text in the column {self.text_column}")
        rest = {k: str(v) for k, v in columns.items() if k != self.text_column and isinstance(v, str | int)}
        return Row(place, text, rest)


def form_of(path: Path) -> str:
    """What a path seems to be: jsonl, csv, parquet, lines, or a folder of texts."""
    return "folder" if path.is_dir() else SUFFIXES.get(path.suffix.lower(), "lines")


def _lines(corpus: Corpus, name: str, start: int, length: int | None) -> Iterator[Row]:
    for place, line in _pieces(corpus, name, start, length):
        if text := line.decode().rstrip("\r\n"):
            yield Row(place, text, {})


def _jsonl(corpus: Corpus, name: str, start: int, length: int | None) -> Iterator[Row]:
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


def _pieces(corpus: Corpus, name: str, start: int, length: int | None) -> Iterator[tuple[Place, bytes]]:
    """Each line with its place, from `start` on; the one at `start` if a length is given."""
    with corpus.file(name).open("rb") as handle:
        handle.seek(start)
        if length is not None:
            yield Place(name, start, length), handle.read(length)
            return
        for line in handle:
            yield Place(name, start, len(line)), line
            start += len(line)


def _csv(corpus: Corpus, name: str, start: int, length: int | None) -> Iterator[Row]:
    """A record may span lines: its place is all bytes that the parser took for it."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with corpus.file(name).open("rb") as handle:
        taken = _Taken(handle, -1)
        header = next(csv.reader(taken), [])
        if corpus.text_column not in header:
            raise UnreadableCorpus(f"the CSV file has no column {corpus.text_column}")
        if start > taken.bytes:
            handle.seek(start)
            taken.bytes = start
        taken.left = -1 if length is None else length
        before = taken.bytes
        for values in csv.reader(taken):
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


def _folder(corpus: Corpus, name: str, start: int, _: int | None) -> Iterator[Row]:
    content = corpus.file(name).read_bytes()
    if start == 0 and content.strip():
        yield Row(Place(name, 0, len(content)), content.decode(), {})


def _parquet_rows(corpus: Corpus, _: str, start: int, length: int | None) -> Iterator[Row]:
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
                yield corpus.row_of(Place("", number + passed, 1), columns)
                passed += 1
            number += batch.num_rows


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UnreadableCorpus("Parquet needs the extra unlearnd[parquet] on the server") from error
    return parquet.ParquetFile(path)


READERS: dict[str, Callable[[Corpus, str, int, int | None], Iterator[Row]]] = {
    "jsonl": _jsonl, "csv": _csv, "parquet": _parquet_rows, "lines": _lines, "folder": _folder,
}  # fmt: skip
