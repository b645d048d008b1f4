"""Every page of an integration, from nothing to a completed request: its commands, as they stand, in one shell."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service.local.supervisor import wait_until
from tests import support

DOCS = Path(__file__).parents[2] / "docs"
ENDS = {  # what the last block, or all of them, must have said
    "access": ["status       completed"],
    "callbacks": ["verified: completed"],
    "datagrail": ['{"status": "ok"}', '{"status": "accepted"}', "status       completed"],
    "fides": ["status       completed"],
    "hub": ["status       completed", "verified: assistant version 1"],
    "opendsr": ['"request_status":"completed"', "DNS:processor.example", '"code": 400'],
    "subjects": ["1 by identifier", "it waits", "waits_for    approval", "version      2"],
    "transcend": ['{"status": "queued"}', "status       completed"],
}


@pytest.fixture
def place(folder, tmp_path) -> Path:
    """A folder with what the pages say that one needs."""
    shutil.copytree(folder / "model", tmp_path / "assistant")
    for name in ("retain.jsonl", "heldout.jsonl"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(support.POLICY))
    rows = [{"text": text, "email": f"person{i}@example.org"} for i, text in enumerate(support.KNOWN)]
    (tmp_path / "crm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sombra = ec.generate_private_key(ec.SECP384R1())
    private = sombra.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "sombra.key").write_bytes(private)
    public = sombra.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "sombra.pem").write_bytes(public)
    return tmp_path


@pytest.mark.parametrize("page", ENDS)
def test_a_page_leads_from_nothing_to_a_completed_request(page, place):
    """Nothing is known to its shell but the names that it says one has."""
    blocks = re.findall(r"^```sh \w+\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(place), "LANG": "C.UTF-8",
        "UNLEARND_PORT": "0", "OMP_NUM_THREADS": "1", "TEXT": support.KNOWN[3], "SECRET": "of datagrail",
        "NAME": " ".join(support.KNOWN[5].split()[:2]), "TRANSCEND_API_KEY": "t", "SOMBRA_URL": "http://127.0.0.1:9",
    }  # fmt: skip
    output = place / "output"
    with output.open("w") as out:
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)]
        shell = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        shell.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        assert wait_until(lambda: not (place / "data" / "endpoint.json").exists(), 40)
    said = output.read_text()
    assert shell.returncode == 0, said[-3000:]
    for expected in ENDS[page]:
        assert expected in said, said[-3000:]


def test_what_the_self_certification_cites_is_there():
    """Each line of the checklist names a test, and each of these exists."""
    checklist = (DOCS / "opendsr.md").read_text().split("## Self-certification")[1]
    lines = [line for line in checklist.splitlines() if line.startswith("| ") and "?" in line]
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert len(lines) == 15
    for line in lines:
        cited = re.findall(r"`(test_\w+)`", line)
        assert cited or "every test" in line, line
        assert all(f"def {name}(" in tests for name in cited), line


def test_every_page_with_commands_is_tested():
    """By this file, or with the evidence or the operations that it is about."""
    pages = {page.stem for page in DOCS.glob("*.md") if "```sh " in page.read_text()}
    assert pages == set(ENDS) | {"auditor", "operations"}
