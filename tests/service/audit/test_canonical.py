"""Canonical JSON."""

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from service.audit.canonical import NotCanonical, dumps, loads


def test_canonical_json_round_trip():
    """Keys sorted, no spaces, and only that form is read."""
    assert dumps({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert loads(dumps({"b": [1, None]})) == {"b": [1, None]}
    for bad in (b'{"b":1,"a":1}', b'{"a":1} ', b'{"a":1,"a":1}', b"\xff", b"[" * 100_000, b"NaN", b"-Infinity"):
        with pytest.raises(NotCanonical):
            loads(bad)


LEAVES = st.none() | st.booleans() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(VALUES.filter(lambda value: value not in (float("inf"), float("-inf"))))
def test_the_fast_writer_writes_what_the_other_one_writes(value):
    """Whatever the strings: quotes, controls, characters beyond the 16 bits by which keys are sorted."""
    try:
        expected = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError:
        with pytest.raises(rfc8785.CanonicalizationError):
            dumps(value)
    else:
        assert dumps(value) == expected


def test_a_lone_surrogate_is_refused():
    """By both writers in the same way."""
    with pytest.raises(rfc8785.CanonicalizationError):
        dumps({"text": "\ud800"})
