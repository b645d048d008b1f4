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
from service.subjects import near_copies
from service.subjects.identifiers import Hasher, NotAnIdentity, detected, normalised, says_more
from service.subjects.readers import LARGEST, CorpusReader, Place, UnreadableCorpus, detect_form

TEXTS = ["One line.", 'Two\nlines, and "quotes".', "Ünïcode — текст", "The last, at the end"]


@pytest.fixture
def hasher(tmp_path):
    """Keyed hashes under a random key."""
    (tmp_path / "kek").write_bytes(os.urandom(32))
    return Hasher(FileKeyWrapper(tmp_path / "kek"))


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
    assert detect_form(path) == form
    return CorpusReader(path, form)


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
        list(CorpusReader(path, detect_form(path)).rows())


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
        lambda h: near_copies.bands(h, "Ada lives"),
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
    assert set(near_copies.bands(hasher, text)) & set(near_copies.bands(hasher, changed))
    assert near_copies.are_near_copies(near_copies.shingles(text), near_copies.shingles(changed))
    assert not near_copies.are_near_copies(near_copies.shingles(text), near_copies.shingles(other))


@pytest.mark.parametrize("value", ["A@B.ORG", "+44 20 7946 0958", "  x "])
def test_the_normal_form_of_a_normal_form_is_itself(value):
    """So that hashing twice finds the same."""
    kind = {"A": "email", "+": "phone"}.get(value[0], "controller_customer_id")
    once = normalised(kind, value)
    assert normalised(kind, once) == once


@pytest.mark.parametrize(
    "written_as",
    ["email=jane@example.com", "?to=jane@example.com", "|jane@example.com|", "*jane@example.com*", "_jane@example.com_",
     "{jane@example.com}", "#jane@example.com", "user/jane@example.com", "-jane@example.com--", "'jane@example.com'",
     "<mailto:jane@example.com>", "(JANE@example.com)."],
)  # fmt: skip
def test_an_address_is_found_as_people_write_it(written_as):
    """Whatever stands around it."""
    assert ("email", "jane@example.com") in list(detected(f"She wrote {written_as} yesterday", None))


def test_an_address_with_an_apostrophe_is_whole():
    """And is not taken for the shorter one of somebody else."""
    found = list(detected("Ask o'brien@example.com", None))
    assert ("email", "o'brien@example.com") in found
    assert ("email", "brien@example.com") not in found


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_keeps_the_others_from_being_indexed(text):
    """Capital dotted I, fractions and numbers in parentheses before an @, and whatever else there is."""
    for odd in (text, f"{text}@example.com", "BİLGİ@EXAMPLE.COM", "½@example.com", "⑴x@example.com"):
        assert all(kind in ("email", "phone") for kind, _ in detected(odd, "DE"))


def test_half_a_character_is_replaced(tmp_path):
    """JSON can spell it, and cut scrapes do."""
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "hi \\ud83d", "id": 7.0, "tags": ["a"], "none": null}\n')
    (row,) = CorpusReader(path, "jsonl").rows()
    assert (row.text, row.columns) == ("hi ?", {"id": "7", "tags": "", "none": ""})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "' + b"x" * LARGEST + b'"}\n', "at byte 0 is larger"),
        ("c.txt", b"short\n" + b"x" * (LARGEST + 1), "at byte 6 is larger"),
        ("c.csv", b'text,n\nfirst,1\n"second,2\n' + b"third,3\n" * (LARGEST // 8), "c.csv is not CSV"),
        ("c.csv", b'text,n\nfirst,1\n"second,2\nthird,3\n', "c.csv is not CSV"),
    ],
    ids=["json", "line", "quote in a large file", "quote"],
)
def test_a_record_that_would_swallow_the_file_is_refused(tmp_path, name, content, message):
    """One quote too many must not make everybody's records one person's."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableCorpus, match=message):
        list(CorpusReader(path, detect_form(path)).rows())


def test_a_files_name_is_nowhere(tmp_path):
    """It may be somebody's: a file is known by its number, and by that it is spoken of."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "ada@example.org.txt").write_text("About Ada.")
    (tmp_path / "c" / "bela@example.org.txt").write_bytes(b"\xff")
    rows = CorpusReader(tmp_path / "c", "folder").rows()
    assert next(rows).place == Place(0, 0, 10)
    with pytest.raises(UnreadableCorpus) as refused:
        next(rows)
    assert str(refused.value) == "file 2 in the order of names is not folder in UTF-8"


@pytest.mark.parametrize(
    ("copy", "more"),
    [
        ("dear maria, the PARCEL has arrived", False), ("Dear Maria, the parcel", False),
        ("Dear Boris, the parcel has arrived", True), ("dear boris, the parcel has arrived", True),
        ("Dear Maria, the parcel 7 has arrived", True), ("Dear Maria (b@example.org), the parcel has arrived", False),
    ],
)  # fmt: skip
def test_a_word_more_is_seen(copy, more):
    """In whatever case or script: a name is not known by its capital letter."""
    assert says_more(copy, "Dear Maria (a@example.org), the parcel has arrived") == more
    assert says_more("王小明住在北京", "李大伟住在北京")
