"""The record's JSON Schema, committed beside this file; its digest stands in every record.

A changed schema is a file of its own, and the old one stays: records that follow it are still checked.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).with_name("certificate-2.schema.json")  # the one that new certificates follow
KNOWN = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in PATH.parent.glob("*.schema.json")}
DIGEST = hashlib.sha256(PATH.read_bytes()).hexdigest()


@cache
def _validator(digest: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(KNOWN[digest].read_bytes()))


def schema_problem(statement: dict[str, Any]) -> str | None:
    """Where a statement does not fit the schema it names, or None; the place is named, never what stands there."""
    for error in _validator(statement["predicate"]["schema"]).iter_errors(statement):
        return f"{'/'.join(map(str, error.absolute_path)) or 'the statement'} ({error.validator})"
    return None
