"""The record: its form, its schema, its card, what it looks like to people, and checks that need none of our code."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from service.audit import render
from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.card import model_card
from service.audit.certificate import NOT_MEMORISED, RequestLine, bucket
from service.audit.schema import DIGEST, PATH
from service.audit.verify import verify
from service.audit.wording import FORBIDDEN, problem_in
from tests.issuer import LINEAGE, LINES, REPORT, Issuer, findings, release_payload

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "auditor.md"
FILES = [{"path": "model/a_b.safetensors", "size": 1, "sha256": "0" * 64}]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    """Who issues."""
    return Issuer(tmp_path_factory.mktemp("keys"))


def test_numbers_are_decimal_strings_and_counts_are_ranges(issuer):
    """No JSON float, no exact record count, requests sorted by ref."""
    predicate = json.loads(issuer.payload(FILES))["predicate"]
    assert predicate["verification"]["after"] == {"el": "0.000000", "ma": "0.300000"}
    assert predicate["forget_set"]["records"] == bucket(3) == "<= 5"
    assert [r["ref"][0] for r in predicate["requests"]] == ["a", "b", "c"]
    assert (bucket(1000), bucket(1001)) == ("<= 1000", "> 1000")
    assert b"." not in re.sub(rb'"[^"]*"', b"", issuer.payload(FILES))


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

    assert all("additionalProperties" in found for found in objects(schema))


def test_canonical_json_round_trip():
    """Keys sorted, no spaces, and only that form is read."""
    assert dumps({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert loads(dumps({"b": [1, None]})) == {"b": [1, None]}
    for bad in (b'{"b":1,"a":1}', b'{"a":1} ', b'{"a":1,"a":1}', b"\xff", b"[" * 100_000, b"NaN", b"-Infinity"):
        with pytest.raises(NotCanonical):
            loads(bad)


@pytest.mark.parametrize("word", FORBIDDEN)
def test_no_word_that_claims_too_much(word):
    """In any case, broken over lines, in a key or deep in a list."""
    shouted = word.upper().replace(" ", "\n ")
    for value in (shouted, {shouted: 1}, [{"a": [f"it is {shouted} now"]}]):
        assert word in problem_in(value)
    assert problem_in({"a": ["PASS", 1, None]}) is None


def test_a_card_does_not_tell_means_of_few():
    """The model card is as public as the certificate."""
    assert "0.95" not in model_card("m", 0, findings(REPORT), submitters=2)
    assert "0.950000" in model_card("m", 0, findings(REPORT), submitters=3)


# For people.

FAILED = {
    "requests": [*LINES[:2], RequestLine("d" * 32, b"\2" * 32, "FAIL", "criterion_missed", "e" * 32)],
    "published": False, "overall": "FAIL", "lineage": {**LINEAGE, "version": None, "supersedes": None},
}  # fmt: skip
UNTRAINED = {
    "requests": [RequestLine("d" * 32, b"\2" * 32, "PASS", NOT_MEMORISED)], "published": False,
    "lineage": {**LINEAGE, "version": None, "supersedes": None},
    "report": {**REPORT, "after": None, "utility": None, "earlier": None, "trajectory": [], "epochs": 0},
}  # fmt: skip
CASES = {
    "passed": ({}, ["**PASS**", "published as version 1", "0.95", "at most 5 texts", "not tried"]),
    "few": ({"requests": LINES[:2]}, ["suppressed", "would be about a person"]),
    "failed": (FAILED, ["**FAIL**", "nothing was published", "stayed above their limits", "submitted again"]),
    "untrained": (UNTRAINED, ["it was not changed", "like unseen texts"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_record_in_plain_words(issuer, name):
    """Markdown and a page of each kind of record; nothing in them claims too much."""
    changes, words = CASES[name]
    statement = json.loads(issuer.payload(FILES, **changes))
    text, page = render.markdown(statement), render.html(statement)
    for word in words:
        assert word.replace("**", r"**") in text, text
        assert word.strip("*") in page
    assert problem_in(text) is None
    assert ("<svg" in page) == (name != "untrained")
    assert ("dashed: its limit" in page) == (name in ("passed", "failed"))
    assert "<script" not in page
    assert not re.search(r'(src|href)="', page)
    for request in statement["predicate"]["requests"]:
        assert request["ref"] in text
        assert request["ref"] in page


def test_nothing_in_a_record_is_markup(issuer):
    """An issuer's name and a file's name are shown as they are, in both forms."""
    hostile = "<img src=x onerror=alert(1)> | [a](http://x) `c` **b**"
    statement = json.loads(issuer.payload([{**FILES[0], "path": hostile}], issuer=hostile))
    page = render.html(statement)
    assert "<img" not in page
    assert "<a " not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt; | [a](http://x) `c` **b**") == 2
    assert "\n| a" not in render.markdown(statement)


# Without our code.


def test_a_release_checks_with_stock_tools(issuer, tmp_path):
    """The block of docs/guides/auditor.md: cryptography and model_signing, in processes that import nothing of ours."""
    release = issuer.release(tmp_path / "release")
    block = PAGE.read_text().split('```sh title="without-us"\n')[1].split("```")[0]
    bin_folder = Path(sys.executable).parent
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "RELEASE": str(release), "TRUST": str(issuer.trust_path)}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-ec", block], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verification succeeded" in done.stdout + done.stderr
    assert "certificate: signed" in done.stdout
    assert not {"unlearnd", "service"} & set(re.findall(r"\b(?:import|from) (\w+)", block))
    (release / "model" / ".gitattributes").write_text("x")
    assert run().returncode != 0


def test_the_pages_of_a_release(issuer, tmp_path):
    """`unlearnd render` writes both forms, from what the keys signed, and nothing of what they did not."""
    release = issuer.release(tmp_path / "release")
    command = [sys.executable, "-m", "service.cli", "render", str(release), "--output"]
    for name in ("record.md", "record.html"):
        subprocess.run([*command, str(tmp_path / name)], check=True)
    statement = verify(release).statement
    assert (tmp_path / "record.md").read_text() == render.markdown(statement)
    assert (tmp_path / "record.html").read_text() == render.html(statement)
    envelope = json.loads((release / "certificate.dsse.json").read_bytes())
    envelope["payload"] = base64.b64encode(release_payload(release).replace(b"0.95", b"0.15")).decode()
    (release / "certificate.dsse.json").write_text(json.dumps(envelope))
    done = subprocess.run([*command, str(tmp_path / "x.md")], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert not (tmp_path / "x.md").exists()
