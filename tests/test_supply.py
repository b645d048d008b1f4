"""What `make check` says of the lock, and what `make audit` says where it could not look."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = runpy.run_path(str(ROOT / ".ci/check_lock.py"))
AUDIT = runpy.run_path(str(ROOT / ".ci/audit.py"))


@pytest.fixture
def copy(tmp_path):
    """pyproject, locks and Dockerfiles, to be changed."""
    for path in [ROOT / "pyproject.toml", ROOT / "requirements.lock", *(ROOT / "docker").glob("*.*o*k*")]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("pyproject.toml", '"alembic>=1.14"', '"alembic>=99"', r"alembic>=99: the lock has \['[\d.]+'\]"),
        ("pyproject.toml", '"alembic>=1.14"', '"alembic>=1.14", "leftpad"', "leftpad: the lock has nothing"),
        ("pyproject.toml", '["huggingface-hub>=1"]', '["leftpad"]', "docker/api.lock: leftpad: .*nothing"),
        ("requirements.lock", "alembic==", "torch==", "torch is in the lock"),
        ("requirements.lock", r"    --hash=sha256:\w+ \\\n", "", "is not as in requirements.lock"),
        ("requirements.lock", r" \\\n    --hash=sha256:\w+\n(?!    )", "\n", "a line of the lock has no hash"),
        ("docker/worker.lock", r"peft==", "tfep==", "docker/worker.lock: peft"),
    ],
)
def test_a_lock_out_of_step_is_seen(copy, file, old, new, fault):
    """Each way to be out of step has its line; the lock as it is has none."""
    assert LOCK["check"](copy) == []
    path = copy / file
    pattern = re.escape(old) if file == "pyproject.toml" else old
    path.write_text(re.sub(pattern, new, path.read_text()))
    assert any(re.search(fault, line) for line in LOCK["check"](copy))


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "audited: 1 packages"),
        ([{"name": "a", "skip_reason": "not found"}], 0, "NOT AUDITED: 1 of 1"),
        (
            [
                {"name": "a", "skip_reason": "not found"},
                {"name": "b", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": []}]},
            ],
            1,
            "VULNERABLE: b 1: CVE-1, fixed in no version",
        ),
    ],
)
def test_an_audit_says_what_it_did_not_see(dependencies, code, said):
    """A package that was not looked at is no pass; a vulnerability beside it still fails."""
    result, lines = AUDIT["verdict"](dependencies)
    assert result == code
    assert any(said in line for line in lines)
    assert any("NOT AUDITED" in line for line in lines) is any("skip_reason" in d for d in dependencies)


def test_the_sbom_names_us_and_what_we_use(tmp_path):
    """CycloneDX, with our version and a component for each package."""
    target = tmp_path / "sbom.json"
    subprocess.run([sys.executable, str(ROOT / ".ci/sbom.py"), str(target)], check=True, capture_output=True)
    bom = json.loads(target.read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "unlearnd")
    assert bom["metadata"]["component"]["version"]
    assert {"fastapi", "torch"} <= {c["name"] for c in bom["components"]}
