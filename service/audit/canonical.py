"""Canonical JSON (RFC 8785): one writer, and a reader that accepts nothing else."""

import contextlib
import json

import rfc8785

from service.domain.json_types import Json


class NotCanonical(ValueError):
    """The bytes are not the canonical form of a JSON document."""


def dumps(value: Json) -> bytes:
    """The canonical bytes of a JSON value; equal values give equal bytes.

    Without numbers, and with ASCII keys alone, the standard library's writer in C writes the same bytes faster.
    """
    if _has_one_form(value):
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, for which the other writer has its own error
            return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return rfc8785.dumps(value)


def _has_one_form(value: Json) -> bool:
    """Whether a value holds strings, true, false and null alone, under ASCII keys."""
    if type(value) is str or value is None or value is True or value is False:
        return True
    if type(value) is dict:
        return all(type(key) is str and key.isascii() and _has_one_form(member) for key, member in value.items())
    return type(value) is list and all(map(_has_one_form, value))


def loads(data: bytes) -> Json:
    """Read canonical bytes.

    Raises:
        NotCanonical: The bytes are not JSON, repeat a key, hold NaN, or are not in canonical form.
    """

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise NotCanonical("a key occurs twice")
        return members

    def no_constant(name: str) -> None:
        raise NotCanonical(f"{name} is not JSON")

    try:
        value = json.loads(data, object_pairs_hook=no_duplicates, parse_constant=no_constant)
        if rfc8785.dumps(value) != data:
            raise NotCanonical("the bytes are not in canonical form")
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise error if isinstance(error, NotCanonical) else NotCanonical("not JSON") from error
    return value
