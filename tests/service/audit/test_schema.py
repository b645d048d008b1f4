"""The certificate's schema is a closed one."""

import hashlib
import json

from jsonschema import Draft202012Validator

from service.audit.schema import DIGEST, PATH
from tests.service.audit.releases import FILES


def test_the_schema_is_a_closed_one_and_its_digest_is_in_the_record(issuer):
    """Every object says what it may hold; the file's digest is what records carry."""
    schema = json.loads(PATH.read_bytes())
    Draft202012Validator.check_schema(schema)
    assert json.loads(issuer.payload(FILES))["predicate"]["schema"] == DIGEST
    assert hashlib.sha256(PATH.read_bytes()).hexdigest() == DIGEST

    def objects(value):
        if isinstance(value, dict):
            if value.get("type") == "object":
                yield value
            for item in value.values():
                yield from objects(item)
        elif isinstance(value, list):
            for item in value:
                yield from objects(item)

    assert all("additionalProperties" in described for described in objects(schema))
