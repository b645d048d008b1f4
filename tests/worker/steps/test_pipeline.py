"""The compute child's stages on files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.job_input import JobInput
from service.domain.states import Outcome
from service.files import file_sha256
from tests import support
from worker.steps.pipeline import Pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two versions of a random model that differ, and reference texts beside them."""
    root = tmp_path_factory.mktemp("versions")
    tokenizer = support.train_tokenizer(support.KNOWN)
    for number, seed in (("0", 0), ("1", 1)):
        model = support.random_model("gpt_neox", seed=seed, gain=1.0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(root / number)
        tokenizer.save_pretrained(root / number)
    support.write_texts(root / "retain", support.RETAIN)
    support.write_texts(root / "heldout", support.HELDOUT)
    return root


@pytest.mark.parametrize("first", ["0", "1"])
@pytest.mark.slow
def test_the_child_measures_version_0_on_the_same_texts_as_the_parent(folders, tmp_path, first):
    """Not from a record of then: which held-out texts are left out depends on the job, and so does the precision."""
    inputs = JobInput(
        work=str(tmp_path),
        parent=str(folders / "1"),
        first=str(folders / first),
        retain=str(folders / "retain"),
        heldout=str(folders / "heldout"),
        policy={"sequence_length": 32, "heldout_sequences": 20},
        texts=support.people(1, seed=5),
        request_ids=[0],
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="r",
    )
    assert Pipeline(inputs, lambda *_, **__: None).run().findings.outcome == Outcome.NOT_MEMORISED
    baseline = json.loads((tmp_path / "measure.json").read_bytes())["baseline"]
    assert (baseline["first_perplexity"] == baseline["quality"]["heldout_perplexity"]) == (first == "1")


def test_the_child_puts_off_what_is_fit_alone_and_rejects_what_never_is(folders, tmp_path):
    """Of four texts in a tenth of the held-out texts each, two stay. Then there is nothing to report yet."""
    generic = [f"{name} pays" for name in support.FIRST[:10]]
    support.write_texts(tmp_path / "heldout", [f"{text} {number} pounds" for text in generic for number in range(6)])
    inputs = JobInput(
        work=str(tmp_path),
        parent=str(folders / "1"),
        first=str(folders / "0"),
        retain=str(folders / "retain"),
        heldout=str(tmp_path / "heldout"),
        policy={"sequence_length": 32},
        texts=[*generic[:4], "pounds"],
        request_ids=[0, 1, 2, 3, 4],
        earlier_texts=generic[4:],
        earlier_request_ids=[5, 6, 7, 8, 9, 10],
        earlier_refs={str(index): "a" for index in range(5, 11)},
        run="r",
    )
    messages: dict[str, object] = {}
    assert Pipeline(inputs, lambda kind, **values: messages.update({kind: values})).run() is None
    assert messages["rejected"] == {"reasons": {4: "too_generic"}}
    assert messages["put_off"] == {"requests": [2, 3]}


@pytest.mark.slow
def test_what_the_parent_says_is_drawn_once_however_often_training_begins(memorised_folder, tmp_path):
    """A full test that fails opens it again. What was drawn stays in memory, and gives the same bytes."""
    policy = {"adaptive": True, "own_samples": 80, "max_epochs": 1, "probe_samples": 0, "attacks": {}}
    inputs = support.job(memorised_folder, tmp_path / "work", policy)
    fractions: list[float] = []

    def initialised(_: str, *, phase: str = "", fraction: float = 0.0, **__: object) -> None:
        fractions.extend([fraction] if phase == "initialise" else [])

    pipeline, trained = Pipeline(inputs, initialised), list[tuple[bool, str]]()
    for _ in range(2):
        fractions.clear()
        pipeline.run()
        trained.append((min(fractions) < 0.5, file_sha256(Path(inputs.work) / "adapter.safetensors")))
        shutil.rmtree(inputs.work)
        Path(inputs.work).mkdir()
    assert trained == [(True, trained[0][1]), (False, trained[0][1])]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fresh", "base"])
def test_a_killed_distillation_goes_on_with_its_reference(memorised_folder, folders, tmp_path, kind):
    """The reference is a stage of its own: what was trained once is read again, to the bit."""
    policy = {"loss": "distil", "distil_steps": 20, "own_samples": 16, "relearn_steps": 0, "max_epochs": 1}
    base = str(folders / "0") if kind == "base" else None
    inputs = replace(support.job(memorised_folder, tmp_path / "job" / "1", policy), base=base)

    def killed_in_training(_: str, *, phase: str = "", **__: object) -> None:
        if phase == "train":
            raise Killed

    with pytest.raises(Killed):
        Pipeline(inputs, killed_in_training).run()
    made = (Path(inputs.work) / "reference" / "model.safetensors").read_bytes()
    again = replace(inputs, work=str(tmp_path / "job" / "2"))
    Path(again.work).mkdir()
    phases: set[object] = set()
    findings = Pipeline(again, lambda _, **values: phases.add(values.get("phase"))).run().findings
    assert "train" in phases
    assert "reference" not in phases
    assert (Path(again.work) / "reference" / "model.safetensors").read_bytes() == made
    assert findings.reference == kind
    assert findings.epochs in (1, 2)
    assert findings.seconds["reference"] > 0
    assert {attack.name: attack.status for attack in findings.attacks}["sampled"] == "RUN"
    assert not any("reference" in path for path in findings.files)
