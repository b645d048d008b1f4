"""Several processes compute a job together: to the bit what one process computes, whichever of them is killed."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from service.local.process import wait_until
from tests import support
from tests.worker.steps.test_run import has_ended
from worker.steps.messages import read_messages
from worker.steps.run import end_child, start_child

SHARED = {"devices": 2, "sharding": "always"}
ALONE = {"devices": 1}


def job(folder: Path, work: Path, policy: dict[str, object]) -> JobInput:
    """Two texts that the memorised model knows by heart."""
    work.mkdir(parents=True)
    return JobInput(
        work=str(work),
        parent=str(folder / "model"),
        first=str(folder / "model"),
        retain=str(folder / "retain.jsonl"),
        heldout=str(folder / "heldout.jsonl"),
        policy={**support.POLICY, "train_dtype": "float32", **policy},
        texts=support.KNOWN[:2],
        request_ids=[0, 1],
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="r",
    )


def messages(inputs: JobInput, at: Callable[[JsonObject, int], None] = lambda *_: None) -> Iterator[JsonObject]:
    """What a child says until it ends; `at` sees each message, and the child's process."""
    child = start_child(inputs, confined=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(asdict(inputs)).encode() + b"\n")
        child.stdin.flush()
        for message in read_messages(child.stdout):
            at(message, child.pid)
            yield message
            if message["type"] in ("report", "error"):  # a worker reads no further
                return
    finally:
        end_child(child)
        child.stdin.close()
        child.stdout.close()


def processes(pid: int) -> list[int]:
    """A process's Python processes of a job: the first, then the others."""
    below = [pid]
    for one in below:
        below += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return [one for one in below if b"worker.child" in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")]


@pytest.fixture(scope="module")
def alone(memorised_folder, tmp_path_factory) -> tuple[JsonObject, dict[str, torch.Tensor]]:
    """(the report of one process, its factors)."""
    work = tmp_path_factory.mktemp("alone") / "1"
    *_, last = messages(job(memorised_folder, work, ALONE))
    return last["report"], load_file(work / "adapter.safetensors")


def check_same(work: Path, report: JsonObject, alone: tuple[JsonObject, dict[str, torch.Tensor]]) -> None:
    """Check that verdicts, measurements and factors are those of one process."""
    expected, factors = alone
    own = load_file(work / "adapter.safetensors")
    assert own.keys() == factors.keys()
    assert {name: float((own[name] - factors[name]).abs().max()) for name in own} == dict.fromkeys(own, 0.0)
    assert report["verdicts"] == expected["verdicts"]
    assert {**report["findings"], "seconds": None} == {**expected["findings"], "seconds": None}


def test_two_processes_give_what_one_gives(memorised_folder, tmp_path, alone):
    """Every verdict, and every factor to the bit; both end."""
    team: list[int] = []
    *_, last = messages(
        job(memorised_folder, tmp_path / "1", SHARED),
        lambda message, pid: team.extend(processes(pid)[:2] if not team else []),
    )
    assert last["type"] == "report"
    check_same(tmp_path / "1", last["report"], alone)
    assert len(team) == 2
    assert wait_until(lambda: all(map(has_ended, team)), 10)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_goes_on_after_a_process_was_killed(memorised_folder, tmp_path, alone, rank):
    """From its last epoch, to the same result; the processes that are left end."""
    team: list[int] = []

    def kill(message: JsonObject, pid: int) -> None:
        if message["type"] == "epoch" and message["values"]["epoch"] == 2 and not team:
            team.extend(processes(pid))
            os.kill(team[rank], signal.SIGKILL)

    said = list(messages(job(memorised_folder, tmp_path / "1", SHARED), kill))
    assert said[-1]["type"] != "report"
    assert wait_until(lambda: all(map(has_ended, team)), 10)
    again = list(messages(job(memorised_folder, tmp_path / "2", SHARED)))
    assert again[-1]["type"] == "report"
    assert not [message for message in again if message.get("phase") == "measure" and message["fraction"] < 1]
    check_same(tmp_path / "2", again[-1]["report"], alone)
