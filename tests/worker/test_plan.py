"""`unlearnd plan`, as a person and as a program read it."""

import json
import sys

import pytest

from tests import support
from worker import plan
from worker.engine import Options
from worker.engine.errors import TooLarge
from worker.slots import machine_memory
from worker.steps.memory import Stored

GIB = str(2**30)


@pytest.fixture
def folder(tmp_path):
    """A tiny model, stored in bfloat16."""
    support.random_model("llama").bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """(exit code, what is printed)."""
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    code = plan.main()
    return code, capsys.readouterr().out


def test_a_program_reads_bytes_of_every_stage(monkeypatch, capsys, folder):
    """And the settings that fit."""
    code, out = run(monkeypatch, capsys, folder, "--devices", 2, "--device-memory", GIB, "--json")
    made = json.loads(out)
    assert (code, made["fits"], made["devices"], made["device_memory"]) == (0, True, 1, 2**30)
    assert [stage["stage"] for stage in made["stages"]] == ["measure", "initialise", "train", "merge", "verify"]
    assert made["stages"][0]["weights"] == 2 * made["parameters"]
    assert made["needed"] == max(stage["total"] for stage in made["stages"]) <= 2**30
    assert made["settings"]["dtype"] == "bfloat16"
    assert made["settings"]["sharding"] is False


def test_a_person_reads_a_table_and_what_would_fit(monkeypatch, capsys, folder):
    """The exit code says that it does not."""
    code, out = run(monkeypatch, capsys, folder, "--devices", 1, "--device-memory", 1000)
    assert code == 1
    assert "It does not fit on one device of 0.0 GB" in out
    assert "More of them would not help." in out
    assert "measure" in out


def test_a_policy_counts(monkeypatch, capsys, tmp_path, folder):
    """Its rows, and its dtype."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"row_budget": 32, "dtype": "float32"}))
    _, out = run(monkeypatch, capsys, folder, "--policy", policy, "--json")
    assert json.loads(out)["settings"]["row_budget"] == 32
    assert json.loads(out)["settings"]["dtype"] == "float32"


def test_a_folder_without_a_model_has_no_plan(monkeypatch, capsys, tmp_path):
    """One line says so."""
    monkeypatch.setattr(sys, "argv", ["plan", str(tmp_path)])
    assert plan.main() == 2
    assert "no plan" in capsys.readouterr().err


def test_a_job_is_planned_for_as_many_texts_as_it_has(folder):
    """What a reference says of a thousand long texts does not fit where that of a few does."""
    stored = Stored.read(folder, Options(loss="distil", device="cpu", sequence_length=64))
    of_a_window = 4 * 64 * stored.config.hidden_size  # bytes that it says
    text = "x" * (4 * 64 * 4096)  # 4096 windows, at four characters a token
    enough = 2 * machine_memory() // (4096 * of_a_window)
    assert stored.fitted([text]).loss == "distil"
    with pytest.raises(TooLarge):
        stored.fitted([text] * enough)
