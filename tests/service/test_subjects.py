"""From identities to records, without a database: readers, identifiers, near copies."""

import csv
import hashlib
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.privacy.envelope import FileKeyWrapper
from service.subjects import copies
from service.subjects.identifiers import Hasher, NotAnIdentity, detected, normalised
from service.subjects.readers import Corpus, UnreadableCorpus, form_of

TEXTS = ["One line.", 'Two\nlines, and "quotes".', "Ünïcode — текст", "The last, at the end"]


@pytest.fixture
def hasher(tmp_path):
    """Keyed hashes under a random key."""
    (tmp_path / "kek").write_bytes(os.urandom(32))
    return Hasher(FileKeyWrapper(tmp_path / "kek"))


def written(folder, form, texts=TEXTS) -> Corpus:
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
    assert form_of(path) == form
    return Corpus(path, form)


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
        ("c.csv", b"a,b\n1,2\n", "the CSV file has no column text"),
        ("c.txt", b"good\n\xff\n", "c.txt is not lines in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_by_its_place_and_without_its_content(tmp_path, name, content, message):
    """An operator needs the place, and nobody the text."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableCorpus, match=message):
        list(Corpus(path, form_of(path)).rows())


def test_identifiers_are_found_in_texts_whatever_their_case_or_spacing(hasher):
    """Raw and in each hashed format; what is nearly one is none."""
    text = "Write to Maria.Example@Example.org, or call +44 20 7946 0958 or (030) 901820."
    assert list(detected(text, None)) == [("email", "maria.example@example.org"), ("phone", "+442079460958")]
    assert ("phone", "+4930901820") in list(detected(text, "DE"))
    found = hasher.identities(text, [("controller_customer_id", " K-7 ")], None)
    sha = hashlib.sha256(b"maria.example@example.org").hexdigest()
    md5 = hashlib.md5(b"+442079460958", usedforsecurity=False).hexdigest()
    for kind, form, value in [
        ("email", "raw", "MARIA.example@example.org "), ("email", "sha256", sha.upper()), ("phone", "md5", md5),
        ("phone", "raw", "+44 (20) 79460958"), ("controller_customer_id", "raw", "K-7"),
    ]:  # fmt: skip
        assert set(hasher.identity(kind, form, value)) <= set(found)
    for kind, form, value in [
        ("email", "raw", "aria.example@example.org"), ("controller_customer_id", "raw", "k-7"),
        ("phone", "sha256", sha), ("email", "sha1", hashlib.sha1(b"x", usedforsecurity=False).hexdigest()),
    ]:  # fmt: skip
        assert not set(hasher.identity(kind, form, value)) & set(found)


@pytest.mark.parametrize(
    ("kind", "form", "value"),
    [("email", "raw", "nobody"), ("phone", "raw", "12"), ("email", "sha256", "00"), ("android_id", "raw", " ")],
)
def test_what_is_no_identity_is_refused_without_being_repeated(hasher, kind, form, value):
    """It may be personal data all the same."""
    with pytest.raises(NotAnIdentity) as refused:
        hasher.identity(kind, form, value)
    assert value.strip() == "" or value not in str(refused.value)


def test_hashes_say_nothing_without_the_key(hasher, tmp_path):
    """Under another key, nothing is the same."""
    (tmp_path / "other").write_bytes(os.urandom(32))
    other = Hasher(FileKeyWrapper(tmp_path / "other"))
    for make in (
        lambda h: h.identity("email", "raw", "a@b.org"),
        lambda h: [h.lexemes("Ada")],
        lambda h: copies.bands(h, "Ada lives"),
    ):
        assert not set(make(hasher)) & set(make(other))


def test_a_name_is_a_phrase_in_either_order(hasher):
    """As on a letter, and as in a register."""
    ada, lovelace = (hasher.lexemes(w).partition(":")[0] for w in ("Ada", "LOVELACE"))
    assert hasher.phrase("Ada Lovelace") == f"({ada} <-> {lovelace}) | ({lovelace} <-> {ada})"
    assert hasher.lexemes("ada ada") == f"{ada}:1,2"
    assert hasher.phrase("- ?") is None


LETTER = (
    "Dear {}, the parcel that you sent us on Monday has arrived at our house in Sample Street and nothing is broken."
)


def test_a_copy_shares_a_band_and_is_alike_and_another_text_is_not(hasher):
    """Without the address, in another case and spacing."""
    text = LETTER.format("Maria Example (maria@example.org)")
    changed = LETTER.format("Maria Example").replace("Monday", "monday").replace("nothing is", "NOTHING  is")
    other = "Nobody knows why the committee met on a Tuesday, but the minutes were kept and then lost again in a fire."
    assert set(copies.bands(hasher, text)) & set(copies.bands(hasher, changed))
    assert copies.are_alike(copies.shingles(text), copies.shingles(changed))
    assert not copies.are_alike(copies.shingles(text), copies.shingles(other))


@pytest.mark.parametrize("value", ["A@B.ORG", "+44 20 7946 0958", "  x "])
def test_the_normal_form_of_a_normal_form_is_itself(value):
    """So that hashing twice finds the same."""
    kind = {"A": "email", "+": "phone"}.get(value[0], "controller_customer_id")
    once = normalised(kind, value)
    assert normalised(kind, once) == once
