"""The certificate: its form, and checks that need none of our code."""

import json
import re
import subprocess
import sys
from pathlib import Path

from service.audit.certificate import bucket
from tests import ROOT
from tests.service.audit.releases import FILES

PAGE = ROOT / "docs" / "guides" / "auditor.md"


def test_numbers_are_decimal_strings_and_counts_are_ranges(issuer):
    """No JSON float, no exact record count, requests sorted by ref."""
    predicate = json.loads(issuer.payload(FILES))["predicate"]
    assert predicate["verification"]["after"] == {"el": "0.000000", "ma": "0.300000"}
    assert predicate["forget_set"]["records"] == bucket(3) == "<= 5"
    assert [r["ref"][0] for r in predicate["requests"]] == ["a", "b", "c"]
    assert (bucket(1000), bucket(1001)) == ("<= 1000", "> 1000")
    assert b"." not in re.sub(rb'"[^"]*"', b"", issuer.payload(FILES))


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
