"""Canonical JSON (RFC 8785), written and read strictly."""

import json
from typing import Any

import rfc8785


class NotCanonical(ValueError):
    """The bytes are not the canonical form of a JSON document."""


def dumps(value: Any) -> bytes:  # any JSON value
    """The one byte string of a JSON value."""
    return rfc8785.dumps(value)


def loads(data: bytes) -> Any:
    """Read canonical bytes.

    Raises:
        NotCanonical: Not JSON, a key twice, NaN, or bytes that are not the canonical form of what they say.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise NotCanonical("a key occurs twice")
        return found

    def no_constant(name: str) -> None:
        raise NotCanonical(f"{name} is not JSON")

    try:
        value = json.loads(data, object_pairs_hook=no_duplicates, parse_constant=no_constant)
        if rfc8785.dumps(value) != data:
            raise NotCanonical("the bytes are not in canonical form")
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise error if isinstance(error, NotCanonical) else NotCanonical("not JSON") from error
    return value
