"""The certificate in plain words, for people."""

import base64
import json
import re
import subprocess
import sys

import pytest

from service.audit import render
from service.audit.certificate import NOT_MEMORISED, RequestLine
from service.audit.verify import verify
from service.audit.wording import problem_in
from tests.issuer import LINEAGE, LINES, REPORT, contributors, release_payload
from tests.service.audit.releases import FILES

FAILED = {
    "requests": [
        RequestLine("b" * 32, b"\1" * 32, "NOT_PUBLISHED", "criterion_missed"),
        RequestLine("d" * 32, b"\2" * 32, "FAIL", "criterion_missed", "e" * 32),
    ],
    "contributors": contributors(3),
    "published": False,
    "overall": "FAIL",
    "lineage": {**LINEAGE, "version": None, "supersedes": None},
    "report": {**REPORT, "reason": "criterion_missed"},
}
UNTRAINED = {
    "requests": [RequestLine("d" * 32, b"\2" * 32, "PASS", NOT_MEMORISED)],
    "published": False,
    "lineage": {**LINEAGE, "version": None, "supersedes": None},
    "report": {**REPORT, "after": None, "utility": None, "earlier": None, "trajectory": [], "epochs": 0},
}
CASES = {
    "passed": (
        {},
        [
            "**PASS**",
            "published as version 1",
            "0.95",
            "at most 5 submitted texts",
            "not tried",
            "of all versions is 1.02",
            "1, and 1 near copies",
        ],
    ),
    "few": ({"requests": LINES[:2]}, ["suppressed", "would be about a person"]),
    "failed": (
        FAILED,
        [
            "**FAIL**",
            "nothing was published",
            "passed its own tests, but no version was published",
            "stayed above their limits",
            "submitted again",
        ],
    ),
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
    assert "\n| [" not in render.markdown(statement)
    assert "| [a]" not in render.markdown(statement)


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
