"""README, quickstart and every guide, from nothing to what it promises: its commands, as they stand, in one shell."""

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

from service.local.process import wait_until
from tests import support
from worker.demo.sample import LAST

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
ENDS = {  # what the page's commands must print
    "README.md": ["sample is there already", "status       completed", "verified: assistant version 1"],
    "docs/quickstart.md": ["sample is there already", "status       completed", "verified: assistant version 1"],
    "docs/guides/access.md": ["status       completed"],
    "docs/guides/callbacks.md": ["verified: completed"],
    "docs/guides/datagrail.md": ['{"status": "ok"}', '{"status": "accepted"}', "status       completed"],
    "docs/guides/fides.md": ["status       completed"],
    "docs/guides/hub.md": ["status       completed", "verified: assistant version 1", "rebuilt and verified"],
    "docs/guides/opendsr.md": ['"request_status":"completed"', "DNS:processor.example", '"code": 400'],
    "docs/guides/subjects.md": ["1 by identifier", "it waits", "waits_for    approval", "version      2"],
    "docs/guides/transcend.md": ['{"status": "queued"}', "status       completed"],
}
ELSEWHERE = {  # run by another test, which has what they need
    "docs/guides/auditor.md": "tests/service/evidence/test_log_keeper.py: needs a release, its trust.json and logs",
    "docs/guides/operations.md": "tests/service/steps/operator/test_restore.py: needs servers whose data it destroys",
}


@pytest.fixture
def clone(folder, tmp_path) -> Path:
    """A clone after `make setup`, with a small sample in place of the one that takes minutes to train."""
    environment = tmp_path / ".venv"
    environment.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (environment / part).symlink_to(Path(sys.prefix) / part)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (environment / ".ready").touch()  # newer than the files that it is made from: nothing is installed
    sample = tmp_path / "sample"
    shutil.copytree(folder, sample)
    people = [
        {"name": " ".join(text.split()[:2]), "email": f"person{i}@example.org", "text": text}
        for i, text in enumerate(support.KNOWN)
    ]
    (sample / "people.jsonl").write_text("".join(json.dumps(person) + "\n" for person in people))
    support.write_texts(sample / "request.jsonl", support.KNOWN[3:4])
    (sample / "policy.json").write_text(json.dumps(support.POLICY))
    (sample / LAST).touch()  # the sample is complete
    return tmp_path


def run_page(page: str, clone: Path, seconds: float = 240) -> str:
    """The output of a page's commands, in a shell to which nothing else is known; its service is stopped."""
    blocks = re.findall(r'^```sh title="[\w-]+"\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(clone), "LANG": "C.UTF-8",
        "UNLEARND_PORT": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "200",  # a long path does not break a line
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
    }  # fmt: skip
    output = clone / "output"
    with output.open("w") as out:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=clone, env=environment, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        shell.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        assert wait_until(lambda: not (clone / "data" / "endpoint.json").exists(), 40)
    printed = output.read_text()
    assert shell.returncode == 0, printed[-3000:]
    return printed


@pytest.mark.parametrize("page", ENDS)
@pytest.mark.slow
def test_a_page_leads_from_nothing_to_what_it_promises(page, clone):
    """Nothing is known to its shell: the page makes everything that it uses."""
    printed = run_page(page, clone)
    for expected in ENDS[page]:
        assert expected in printed, printed[-3000:]


@pytest.mark.slow
def test_the_readme_runs_on_the_sample_that_it_makes(clone):
    """With nothing in place of the real sample: `make sample` trains it, and its people are unlearned."""
    shutil.rmtree(clone / "sample")
    printed = run_page("README.md", clone, 1800)  # training takes a minute on a quiet machine
    assert "status       completed" in printed
    assert "verified: assistant version 1" in printed


def test_what_the_self_certification_cites_is_there():
    """Each line of the checklist names a test, and each of these exists."""
    checklist = (GUIDES / "opendsr.md").read_text().split("## Self-certification")[1]
    lines = [line for line in checklist.splitlines() if line.startswith("| ") and "?" in line]
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert len(lines) == 15
    for line in lines:
        cited = re.findall(r"`(test_\w+)`", line)
        assert cited or "every test" in line, line
        assert all(f"def {name}(" in tests for name in cited), line


def test_every_page_with_commands_is_tested():
    """By this file, or by another test that has what the page needs."""
    pages = {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")}
    with_commands = {str(page.relative_to(ROOT)) for page in pages if '```sh title="' in page.read_text()}
    assert with_commands == set(ENDS) | set(ELSEWHERE)
    assert all((ROOT / where.split(":")[0]).exists() for where in ELSEWHERE.values())
