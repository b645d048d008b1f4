"""Canonical JSON."""

import pytest

from service.audit.canonical import NotCanonical, dumps, loads


def test_canonical_json_round_trip():
    """Keys sorted, no spaces, and only that form is read."""
    assert dumps({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert loads(dumps({"b": [1, None]})) == {"b": [1, None]}
    for bad in (b'{"b":1,"a":1}', b'{"a":1} ', b'{"a":1,"a":1}', b"\xff", b"[" * 100_000, b"NaN", b"-Infinity"):
        with pytest.raises(NotCanonical):
            loads(bad)
