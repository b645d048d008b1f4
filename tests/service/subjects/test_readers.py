"""Corpora in every form: each record is read again at its place."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.confined import OutsideRoots, Root
from service.subjects.readers import MAX_RECORD_BYTES, CorpusReader, Place, UnreadableCorpus, detect_form

TEXTS = ["One line.", 'Two\nlines, and "quotes".', "Ünïcode — текст", "The last, at the end"]


def written(folder, form, texts=TEXTS) -> CorpusReader:
    """A corpus of that form with a customer column."""
    rows = [{"customer": f"c{i}", "text": text} for i, text in enumerate(texts)]
    path = folder / {"jsonl": "c.jsonl", "csv": "c.csv", "parquet": "c.parquet", "lines": "c.txt", "folder": "c"}[form]
    if form == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as handle:
            writer = csv.DictWriter(handle, ["customer", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    elif form == "lines":
        path.write_text("".join(text.replace("\n", " ") + "\n" for text in texts))
    else:
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i:02}.txt").write_text(text)
    assert detect_form(Root(folder), path) == form
    return CorpusReader(Root(folder), path, form)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "lines", "folder"])
def test_each_record_is_read_again_at_its_place_and_reading_goes_on_behind_any(tmp_path, form):
    """In every form; the progress never goes back."""
    corpus = written(tmp_path, form)
    rows = list(corpus.rows())
    expected = [t.replace("\n", " ") for t in TEXTS] if form == "lines" else TEXTS
    assert [row.text for row in rows] == expected
    if form in ("jsonl", "csv", "parquet"):
        assert [row.columns for row in rows] == [{"customer": f"c{i}"} for i in range(len(TEXTS))]
    for i, row in enumerate(rows):
        assert corpus.read(row.place) == row
        assert list(corpus.rows(row.place)) == rows[i + 1 :]
    assert corpus.done(None) == 0
    assert corpus.done(rows[-1].place) == corpus.size()
    assert [corpus.done(row.place) for row in rows] == sorted({corpus.done(row.place) for row in rows})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), max_size=8))
def test_any_texts_in_csv_and_json_lines(tmp_path_factory, texts):
    """Quotes, commas, separators of lines and all."""
    folder = tmp_path_factory.mktemp("any")
    for form in ("jsonl", "csv"):
        corpus = written(folder, form, texts)
        rows = list(corpus.rows())
        assert [row.text for row in rows] == [t for t in texts if t.strip()]
        assert [corpus.read(row.place).text for row in rows] == [row.text for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "a"}\nnot json\n', "what begins at byte 14 is not a JSON object"),
        ("c.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "the record at 14 has no text in the column text"),
        ("c.jsonl", b'{"text": "\xff"}\n', "what begins at byte 0 is not a JSON object"),
        ("c.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "what begins at byte 14 is not a JSON object"),
        ("c.csv", b"a,b\n1,2\n", "the CSV file has no column text"),
        ("c.txt", b"good\n\xff\n", "c.txt is not lines in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_by_its_place_and_without_its_content(tmp_path, name, content, message):
    """An operator needs the place, and nobody the text."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableCorpus, match=message):
        list(CorpusReader(Root(tmp_path), path, detect_form(Root(tmp_path), path)).rows())


def test_what_is_not_parquet_is_said(tmp_path):
    """The library's own error would quote bytes of the file."""
    (tmp_path / "c.parquet").write_bytes(b"PAR1, or so it says")
    with pytest.raises(UnreadableCorpus, match=r"c\.parquet is not Parquet"):
        CorpusReader(Root(tmp_path), tmp_path / "c.parquet", "parquet").size()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "lines", "folder"])
def test_a_file_that_became_a_link_out_is_not_read(tmp_path, form):
    """Neither from the start, nor a record at its place, nor its size or columns; in every form."""
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").mkdir()
    corpus, secret = written(tmp_path / "root", form), written(tmp_path / "secret", form)
    places = [row.place for row in corpus.rows()]
    for file, other in zip(corpus.files, secret.files, strict=True):
        file.unlink()
        file.symlink_to(other)
    replaced = CorpusReader(corpus.root, corpus.path, form)
    reads = [lambda: list(replaced.rows()), lambda: replaced.read(places[0]), replaced.size, replaced.columns]
    for read in [*reads, lambda: corpus.read(places[0])]:
        with pytest.raises(OutsideRoots):
            read()


def test_half_a_character_is_replaced(tmp_path):
    """JSON can spell it, and cut scrapes do."""
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "hi \\ud83d", "id": 7.0, "tags": ["a"], "none": null}\n')
    (row,) = CorpusReader(Root(tmp_path), path, "jsonl").rows()
    assert (row.text, row.columns) == ("hi ?", {"id": "7", "tags": "", "none": ""})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "' + b"x" * MAX_RECORD_BYTES + b'"}\n', "at byte 0 is larger"),
        ("c.txt", b"short\n" + b"x" * (MAX_RECORD_BYTES + 1), "at byte 6 is larger"),
        ("c.csv", b'text,n\nfirst,1\n"second,2\n' + b"third,3\n" * (MAX_RECORD_BYTES // 8), "c.csv is not CSV"),
        ("c.csv", b'text,n\nfirst,1\n"second,2\nthird,3\n', "c.csv is not CSV"),
    ],
    ids=["json", "line", "quote in a large file", "quote"],
)
def test_a_record_that_would_swallow_the_file_is_refused(tmp_path, name, content, message):
    """One quote too many must not make everybody's records one person's."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableCorpus, match=message):
        list(CorpusReader(Root(tmp_path), path, detect_form(Root(tmp_path), path)).rows())


def test_a_files_name_is_nowhere(tmp_path):
    """It may be somebody's: a file is known by its number, and by that it is spoken of."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "ada@example.org.txt").write_text("About Ada.")
    (tmp_path / "c" / "bela@example.org.txt").write_bytes(b"\xff")
    rows = CorpusReader(Root(tmp_path), tmp_path / "c", "folder").rows()
    assert next(rows).place == Place(0, 0, 10)
    with pytest.raises(UnreadableCorpus) as refused:
        next(rows)
    assert str(refused.value) == "file 2 in the order of names is not folder in UTF-8"
