"""Several processes compute a job together: to the bit what one process computes, whichever of them is killed."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from service.domain.json_types import JsonObject
from service.local.process import wait_until
from tests import support
from tests.worker.steps.children import messages, processes
from tests.worker.steps.test_run import has_ended
from worker.engine.options import DEFAULT_ATTACKS

LEAST = {
    "train_dtype": "float32",
    "heldout_sequences": 20,
    "own_samples": 4,
    "learning_rate": 6e-3,
    "attacks": dict.fromkeys(DEFAULT_ATTACKS, "off"),
}
SHARED = LEAST | {"devices": 2, "sharding": "always"}
ALONE = LEAST | {"devices": 1}


@pytest.fixture(scope="module")
def folder(memorised_folder, tmp_path_factory) -> Path:
    """The memorised model in bfloat16, and its texts."""
    place = tmp_path_factory.mktemp("narrow") / "memorised"
    shutil.copytree(memorised_folder, place)
    AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.bfloat16).save_pretrained(place / "model")
    return place


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory) -> tuple[JsonObject, dict[str, torch.Tensor]]:
    """(the report of one process, its factors)."""
    work = tmp_path_factory.mktemp("alone") / "1"
    *_, last = messages(support.job(folder, work, ALONE))
    return last["report"], load_file(work / "adapter.safetensors")


def check_same(work: Path, report: JsonObject, alone: tuple[JsonObject, dict[str, torch.Tensor]]) -> None:
    """Check that verdicts, measurements and factors are those of one process."""
    expected, factors = alone
    own = load_file(work / "adapter.safetensors")
    assert own.keys() == factors.keys()
    assert {name: float((own[name] - factors[name]).abs().max()) for name in own} == dict.fromkeys(own, 0.0)
    assert report["verdicts"] == expected["verdicts"]
    assert {**report["findings"], "seconds": None} == {**expected["findings"], "seconds": None}


@pytest.mark.slow
def test_two_processes_give_what_one_gives_whichever_of_them_is_killed(folder, tmp_path, alone):
    """Every verdict, and every factor to the bit. A job goes on from its last epoch; what is left of a team ends."""
    for attempt, epoch in ((1, 2), (2, 4)):
        team: list[int] = []

        def kill(
            message: JsonObject, pid: int, team: list[int] = team, rank: int = 2 - attempt, at: int = epoch
        ) -> None:
            if message["type"] == "epoch" and message["values"]["epoch"] == at and not team:
                team.extend(processes(pid))
                os.kill(team[rank], signal.SIGKILL)

        said = list(messages(support.job(folder, tmp_path / str(attempt), SHARED), kill))
        assert said[-1]["type"] != "report"
        assert len(team) == 2
        assert wait_until(lambda team=team: all(map(has_ended, team)), 10)
    said = list(messages(support.job(folder, tmp_path / "3", SHARED)))
    assert said[-1]["type"] == "report"
    assert not [message for message in said if message.get("phase") == "measure"]
    check_same(tmp_path / "3", said[-1]["report"], alone)
