"""Identifiers in texts, and their keyed hashes."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.privacy.envelope import FileKeyWrapper
from service.subjects import near_copies
from service.subjects.identifiers import Hasher, NotAnIdentity, detect_identifiers, has_additional_words, normalise


def test_identifiers_are_found_in_texts_whatever_their_case_or_spacing(hasher):
    """Raw and in each hashed format; what is nearly one is none."""
    text = "Write to Maria.Example@Example.org, or call +44 20 7946 0958 or (030) 901820."
    assert list(detect_identifiers(text, None)) == [("email", "maria.example@example.org"), ("phone", "+442079460958")]
    assert ("phone", "+4930901820") in list(detect_identifiers(text, "DE"))
    hashes = hasher.identities(text, [("controller_customer_id", " K-7 ")], None)
    sha = hashlib.sha256(b"maria.example@example.org").hexdigest()
    md5 = hashlib.md5(b"+442079460958", usedforsecurity=False).hexdigest()
    for kind, form, value in [
        ("email", "raw", "MARIA.example@example.org "),
        ("email", "sha256", sha.upper()),
        ("phone", "md5", md5),
        ("phone", "raw", "+44 (20) 79460958"),
        ("controller_customer_id", "raw", "K-7"),
    ]:
        assert set(hasher.identity(kind, form, value)) <= set(hashes)
    for kind, form, value in [
        ("email", "raw", "aria.example@example.org"),
        ("controller_customer_id", "raw", "k-7"),
        ("phone", "sha256", sha),
        ("email", "sha1", hashlib.sha1(b"x", usedforsecurity=False).hexdigest()),
    ]:
        assert not set(hasher.identity(kind, form, value)) & set(hashes)


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


@pytest.mark.parametrize("value", ["A@B.ORG", "+44 20 7946 0958", "  x "])
def test_the_normal_form_of_a_normal_form_is_itself(value):
    """So that hashing twice finds the same."""
    kind = {"A": "email", "+": "phone"}.get(value[0], "controller_customer_id")
    once = normalise(kind, value)
    assert normalise(kind, once) == once


@pytest.mark.parametrize(
    "written_as",
    [
        "email=jane@example.com",
        "?to=jane@example.com",
        "|jane@example.com|",
        "*jane@example.com*",
        "_jane@example.com_",
        "{jane@example.com}",
        "#jane@example.com",
        "user/jane@example.com",
        "-jane@example.com--",
        "'jane@example.com'",
        "<mailto:jane@example.com>",
        "(JANE@example.com).",
    ],
)
def test_an_address_is_found_as_people_write_it(written_as):
    """Whatever stands around it."""
    assert ("email", "jane@example.com") in list(detect_identifiers(f"She wrote {written_as} yesterday", None))


def test_an_address_with_an_apostrophe_is_whole():
    """And is not taken for the shorter one of somebody else."""
    identifiers = list(detect_identifiers("Ask o'brien@example.com", None))
    assert ("email", "o'brien@example.com") in identifiers
    assert ("email", "brien@example.com") not in identifiers


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_keeps_the_others_from_being_indexed(text):
    """Capital dotted I, fractions and numbers in parentheses before an @, and whatever else there is."""
    for odd in (text, f"{text}@example.com", "BİLGİ@EXAMPLE.COM", "½@example.com", "⑴x@example.com"):
        assert all(kind in ("email", "phone") for kind, _ in detect_identifiers(odd, "DE"))


@pytest.mark.parametrize(
    ("copy", "more"),
    [
        ("dear maria, the PARCEL has arrived", False),
        ("Dear Maria, the parcel", False),
        ("Dear Boris, the parcel has arrived", True),
        ("dear boris, the parcel has arrived", True),
        ("Dear Maria, the parcel 7 has arrived", True),
        ("Dear Maria (b@example.org), the parcel has arrived", False),
    ],
)
def test_a_word_more_is_seen(copy, more):
    """In whatever case or script: a name is not known by its capital letter."""
    assert has_additional_words(copy, "Dear Maria (a@example.org), the parcel has arrived") == more
    assert has_additional_words("王小明住在北京", "李大伟住在北京")
