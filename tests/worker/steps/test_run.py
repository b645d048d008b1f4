"""The compute child as a worker starts it, and what its worker believes of what it says."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from service.domain.errors import PermanentJobError
from service.domain.job_input import JobInput
from service.local.process import wait_until
from tests.worker.steps.test_sandbox import PLANTED
from worker.steps.messages import MAX_BYTES, check_message, read_messages
from worker.steps.run import PROGRESS_INTERVAL, PROGRESS_STEP, ProgressWrites, end_child, start_child
from worker.steps.sandbox import Sandbox, host_sandbox


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


@pytest.mark.parametrize(("devices", "seen"), [(("1", "3"), "1,3"), ((), "0,1,2,3")])
def test_a_child_sees_the_devices_of_its_slot_alone(inputs, monkeypatch, devices, seen):
    """Whatever its worker sees."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    child = start_child(inputs, confined=False, devices=devices)
    environment = Path(f"/proc/{child.pid}/environ")  # the child's own once it is executed
    expected = f"CUDA_VISIBLE_DEVICES={seen}".encode()
    try:
        assert wait_until(lambda: expected in environment.read_bytes().split(b"\0"), 60)
    finally:
        end_child(child)
        child.stdin.close()
        child.stdout.close()


def status(proc: Path) -> dict[str, str]:
    """A process's status, as the kernel has it."""
    lines = (proc / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def running_python(pid: int) -> int:
    """The process in which a started child's Python runs: itself, or the one that `unshare` made."""
    running: list[int] = []

    def is_python() -> bool:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, below)):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(sys.executable.encode()):
                running.append(process)
        return bool(running)

    assert wait_until(is_python, 60)
    return running[0]


DESCENDANT = """
import os, sys, time

if os.fork() == 0:
    if sys.argv[1] == "leave":
        os.setsid()
    print(os.readlink("/proc/self"), flush=True)
time.sleep(600)
"""


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped."""
    try:
        return status(Path(f"/proc/{pid}"))["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("session", ["leave", "stay"])
def test_nothing_that_a_child_started_outlives_it(session):
    """Not in its process group, nor, where the host has process namespaces, in a session of its own."""
    sandbox = Sandbox(host_sandbox().network, host_sandbox().processes) if session == "leave" else Sandbox()
    if session == "leave" and not sandbox.processes:
        pytest.skip("this host makes no process namespace")
    command = sandbox.command([sys.executable, "-c", DESCENDANT, session], readable=[], writable=[])
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as child:
        descendant = int(child.stdout.readline())
        assert not has_ended(descendant)
        assert end_child(child) == -9
        assert wait_until(lambda: has_ended(descendant), 10)


def test_a_childs_exit_status_passes_through_its_sandbox():
    """The worker tells a child that ended from one that was killed."""
    command = host_sandbox().command([sys.executable, "-c", "raise SystemExit(7)"], readable=[], writable=[])
    assert subprocess.run(command, check=False).returncode == 7
    command = host_sandbox().command([sys.executable, "-c", "input()"], readable=[], writable=[])
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as child:
        os.kill(running_python(child.pid), signal.SIGKILL)
        assert child.wait(20) == -9


@pytest.mark.parametrize("confined", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_started_child_has_no_credential_of_its_worker(inputs, monkeypatch, confined):
    """The kernel shows its environment; confined, it has no network and no privilege, and it still does its job."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    child = start_child(inputs, confined=confined)
    try:
        proc = Path(f"/proc/{running_python(child.pid)}")
        environment = (proc / "environ").read_bytes()
        assert b"PATH=" in environment
        assert b"planted" not in environment
        if confined and not host_sandbox().missing:
            assert (status(proc)["NoNewPrivs"], int(status(proc)["CapEff"], 16)) == ("1", 0)
            assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        child.stdin.write(json.dumps(asdict(inputs)).encode() + b"\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
        assert (answer["type"], answer["permanent"]) == ("error", False)  # it looked for the model's configuration
    finally:
        end_child(child)
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


def test_progress_is_written_seldom():
    """A long job writes 400 times; a short one twice a second, and not for what has come no further."""
    writes, reports = ProgressWrites(), 20_000
    written = [n for n in range(reports + 1) if writes.is_due(n / reports, float(n))]
    assert 0.9 / PROGRESS_STEP < len(written) <= 1 / PROGRESS_STEP + 1
    assert written[-1] > reports * (1 - 2 * PROGRESS_STEP)
    writes = ProgressWrites()
    assert writes.is_due(0.2, 10.0)
    assert not writes.is_due(0.9, 10.0 + PROGRESS_INTERVAL / 2)
    assert writes.is_due(0.9, 10.0 + PROGRESS_INTERVAL)
    assert not writes.is_due(0.9, 60.0)
