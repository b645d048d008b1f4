"""The certificate's schema is a closed one."""

import hashlib
import json

import pytest
from jsonschema import Draft202012Validator

from service.audit.canonical import dumps
from service.audit.certificate import WordingRefused
from service.audit.predicate import CertifiedUtility
from service.audit.schema import DIGEST, PATH
from service.audit.verification import ExitCode
from service.audit.verify import verify
from tests.issuer import LINEAGE, LINES, POLICY, release_payload
from tests.service.audit.releases import FILES, refused


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


TOTAL = ("first_heldout_perplexity", "total_ratio", "max_total_ratio", "within_total_budget")
NEIGHBOURS = tuple(name for name in CertifiedUtility.__annotations__ if "neighbour" in name)


def without_what_is_new(predicate: dict) -> None:
    """What schema 3 does not have: neighbours, figures of attacks, references, bases, probes, exact counts, copies."""
    for name in NEIGHBOURS:
        del predicate["verification"]["utility"][name]
    kept = ("name", "status", "result")
    attacks = predicate["verification"]["attacks"]
    predicate["verification"]["attacks"] = [{name: attack[name] for name in kept} for attack in attacks]
    del predicate["method"]["reference"], predicate["method"]["base"]
    del predicate["verification"]["probes"], predicate["verification"]["earlier"]["exact"]
    del predicate["verification"]["quantised"]


def test_a_certificate_of_an_older_schema_still_verifies(tmp_path, issuer, monkeypatch):
    """Schema 2 has no budget for all versions together and no overlap; with one of them it does not fit."""
    monkeypatch.delitem(POLICY, "attacks")
    release = issuer.release(tmp_path / "release")
    statement = json.loads(release_payload(release))
    predicate = statement["predicate"]
    without_what_is_new(predicate)
    predicate["schema"] = hashlib.sha256(PATH.with_name("certificate-2.schema.json").read_bytes()).hexdigest()
    del predicate["verification"]["heldout_overlap"]
    total = {name: predicate["verification"]["utility"].pop(name) for name in TOTAL}
    assert verify(issuer.certify(release, dumps(statement))).statement["predicate"]["lineage"]["version"] == 1
    predicate["verification"]["utility"]["total_ratio"] = total["total_ratio"]
    assert refused(issuer.certify(release, dumps(statement))).code == ExitCode.MALFORMED


def test_a_certificate_from_before_an_attack_was_added_still_verifies(release, issuer):
    """Schema 7 has no exposure of e-mail addresses: a certificate of it cannot list the attack."""
    statement = json.loads(release_payload(release))
    predicate = statement["predicate"]
    predicate["schema"] = hashlib.sha256(PATH.with_name("certificate-7.schema.json").read_bytes()).hexdigest()
    assert verify(issuer.certify(release, dumps(statement))).statement["predicate"]["lineage"]["version"] == 1
    left_out = next(attack for attack in predicate["verification"]["attacks"] if attack["status"] == "NOT_RUN")
    left_out["name"] = "exposure_emails"
    assert refused(issuer.certify(release, dumps(statement))).code == ExitCode.MALFORMED


@pytest.mark.parametrize("name", [*TOTAL, *NEIGHBOURS, "heldout_overlap", "probes", "quantised"])
def test_a_certificate_of_this_schema_leaves_nothing_out(release, issuer, name):
    """Whoever has used up the budget of all versions cannot leave it out."""
    statement = json.loads(release_payload(release))
    verification = statement["predicate"]["verification"]
    del (verification if name in verification else verification["utility"])[name]
    assert refused(issuer.certify(release, dumps(statement))).code == ExitCode.MALFORMED


def test_a_failed_run_says_pass_of_nobody_whom_it_trained_on(issuer):
    """The issuer cannot write it: such a request is still in the model that people use."""
    unpublished = {"lineage": {**LINEAGE, "version": None, "supersedes": None}, "published": False, "overall": "FAIL"}
    with pytest.raises(WordingRefused, match="reason"):
        issuer.payload(FILES, requests=LINES, **unpublished)
