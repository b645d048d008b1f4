"""The compute child as a worker starts it, and what its worker believes of what it says."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from service.domain.errors import PermanentJobError
from service.domain.job_input import JobInput
from service.local.process import wait_until
from tests.worker.steps.test_sandbox import PLANTED
from worker.steps.messages import MAX_BYTES, check_message, read_messages
from worker.steps.run import start_child
from worker.steps.sandbox import host_sandbox


@pytest.fixture
def inputs(tmp_path) -> JobInput:
    """A job whose model is an empty folder."""
    for name in ("job/1", "parent"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("retain", "heldout"):
        (tmp_path / name).write_text("")
    paths = {name: str(tmp_path / name) for name in ("parent", "retain", "heldout")} | {
        "first": str(tmp_path / "parent")
    }
    return JobInput(
        str(tmp_path / "job/1"),
        **paths,
        policy={},
        texts=[],
        request_ids=[],
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="",
    )


def status(pid: int) -> dict[str, str]:
    """A process's status, as the kernel has it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("confined", [True, False])
def test_a_started_child_has_no_credential_of_its_worker(inputs, monkeypatch, confined):
    """The kernel shows its environment; confined, it has no network and no privilege, and it still does its job."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    child = start_child(inputs, confined=confined)
    try:
        proc = Path(f"/proc/{child.pid}")
        assert wait_until(lambda: (proc / "cmdline").read_bytes().startswith(sys.executable.encode()), 10)
        environment = (proc / "environ").read_bytes()
        assert b"PATH=" in environment
        assert b"planted" not in environment
        if confined and not host_sandbox().missing:
            assert (status(child.pid)["NoNewPrivs"], int(status(child.pid)["CapEff"], 16)) == ("1", 0)
            assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        child.stdin.write(json.dumps(asdict(inputs)).encode() + b"\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
        assert (answer["type"], answer["permanent"]) == ("error", False)  # it looked for the model's configuration
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize(
    "message",
    [
        {"type": "stage", "stage": "publish"},
        {"type": "rejected", "reasons": {"0": "Ada Adler owes 300 pounds"}},
        {"type": "error", "code": "Ada Adler", "permanent": True},
        {"type": "epoch", "values": {"epoch": 1, "Ada Adler": 0.5}},
        {"type": "report", "report": {"findings": {"reason": "x" * 201}}},
        {"type": "report", "report": {"findings": {"files": {"model/a": "a text"}}}},
        ["type"],
    ],
    ids=str,
)
def test_a_child_cannot_pass_text_or_skip_a_stage(message):
    """What goes into tables and certificates are codes; only control certifies and publishes."""
    with pytest.raises(PermanentJobError) as caught:
        check_message(message)
    assert caught.value.reason == "child_message"


def test_what_a_child_really_says_passes():
    """Stages, codes, versions, digests, numbers, and the names that a model's files have."""
    check_message({"type": "stage", "stage": "verify"})
    check_message({"type": "rejected", "reasons": {"0": "too_short"}})
    findings = {"files": {"model/a licence.txt": "7" * 64}, "environment": {"packages": {"torch": "2.13.0+cpu"}}}
    check_message({"type": "report", "report": {"findings": findings, "verdicts": {"0": "PASS"}, "reason": None}})


def test_an_endless_line_is_no_message():
    """It is cut at the limit, and what is cut is not JSON."""
    with pytest.raises(ValueError, match=r"Unterminated"):
        list(read_messages(io.BytesIO(b'"' + b"x" * (MAX_BYTES + 10))))
