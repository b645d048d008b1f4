"""The JSON Schema of certificates, in a file beside this one; every certificate names the schema's digest.

A new schema is a new file. The old files stay, so that older certificates can still be checked.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from service.audit.predicate import Statement

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

PATH = Path(__file__).with_name("certificate-8.schema.json")  # new certificates follow this one
KNOWN = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in PATH.parent.glob("*.schema.json")}
DIGEST = hashlib.sha256(PATH.read_bytes()).hexdigest()


@cache
def _validator(digest: str) -> "Draft202012Validator":
    from jsonschema import Draft202012Validator  # half of an API process's start, and it checks no certificate

    return Draft202012Validator(json.loads(KNOWN[digest].read_bytes()))


def schema_problem(statement: Statement) -> str | None:
    """The first place where a statement does not fit the schema it names, or None; the value there is never quoted."""
    for error in _validator(statement["predicate"]["schema"]).iter_errors(statement):
        return f"{'/'.join(map(str, error.absolute_path)) or 'the statement'} ({error.validator})"
    return None
