"""The record's JSON Schema, committed beside this file; its digest stands in every record."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).with_name("record.schema.json")
DIGEST = hashlib.sha256(PATH.read_bytes()).hexdigest()


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(PATH.read_bytes()))


def schema_problem(statement: dict[str, Any]) -> str | None:
    """Where a statement does not fit, or None; the place is named, never what stands there."""
    for error in _validator().iter_errors(statement):
        return f"{'/'.join(map(str, error.absolute_path)) or 'the statement'} ({error.validator})"
    return None
