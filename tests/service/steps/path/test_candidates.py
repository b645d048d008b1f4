"""What a compute worker may hand over: its parent's files with other values in the weights, whatever it reports."""

import json

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from service.db.tables import Certificate, Job
from service.domain.errors import PermanentJobError
from service.domain.states import CONTROL_STAGES, Outcome, Stage
from service.lease import hold_job
from service.steps.path import certify
from tests.service import jobs as planted
from tests.service.jobs import REPORT, file_digests, make_candidate, to_certify
from worker import tasks


def rewrite(file, *, metadata=None, **changes) -> None:
    """Change tensors of a weights file; None removes one."""
    with safe_open(file, framework="np") as weights:
        kept = weights.metadata()
    tensors = {name: value for name, value in (load_file(file) | changes).items() if value is not None}
    save_file(tensors, file, kept if metadata is None else metadata)


def first(file):
    """(name, values) of a tensor."""
    return next(iter(load_file(file).items()))


def add_remote_code(model) -> None:
    """Let the configuration name code."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))


def set_tensor(model, **changes) -> None:
    """Change the weights file."""
    rewrite(model / "model.safetensors", **changes)


PLANTS = {
    "code": lambda model: (model / "evil.py").write_text("import os"),
    "remote code": add_remote_code,
    "another tokenizer": lambda model: (model / "tokenizer.json").write_text("{}"),
    "no tokenizer": lambda model: (model / "tokenizer.json").unlink(),
    "a file beside the model": lambda model: (model.parent / "texts.txt").write_text("a record"),
    "an extra tensor": lambda model: set_tensor(model, extra=first(model / "model.safetensors")[1].copy()),
    "a tensor less": lambda model: set_tensor(model, **{first(model / "model.safetensors")[0]: None}),
    "another dtype": lambda model: set_tensor(
        model, **{(given := first(model / "model.safetensors"))[0]: given[1].astype("float16")}
    ),
    "another shape": lambda model: set_tensor(
        model, **{(given := first(model / "model.safetensors"))[0]: given[1].reshape(-1)}
    ),
    "a text in the header": lambda model: set_tensor(model, metadata={"format": "pt", "note": "a record"}),
    "weights that nothing reads": lambda model: (model / "adapter_model.safetensors").write_bytes(b"\x02" + b"\0" * 7),
    "weights that are none": lambda model: (model / "model.safetensors").write_bytes(b"a record"),
}


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
def test_control_signs_no_candidate_that_is_unlike_its_parent(services, job, monkeypatch, name, outcome):
    """The report has the true digests of the planted file: nothing is certified, and the job is given up."""

    def plant(services, job_id, fence):
        make_candidate(services, job_id, fence)
        PLANTS[name](services.storage.candidate(job_id, fence) / "model")
        return file_digests(services.storage.candidate(job_id, fence))

    monkeypatch.setattr(planted, "make_candidate", plant)
    _, job_id = job
    failed = {"outcome": "failed", "reason": "criterion_missed"} if outcome == Outcome.FAILED else {}
    to_certify(services, job_id, REPORT | failed)
    tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
    with services.db.transaction() as session:
        row = session.get(Job, job_id)
        assert (row.stage, row.reason) == (Stage.QUARANTINED, "candidate_unlike_parent")
        assert session.get(Certificate, job_id) is None


def test_other_values_are_certified(services, job):
    """The same weights file with other values in it is what a merge makes."""
    _, job_id = job
    to_certify(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify.certify_job(services, job_id, lease.fence)
    with services.db.transaction() as session:
        assert session.get(Certificate, job_id) is not None


def test_a_file_that_changed_since_it_was_measured_is_not_certified(services, job):
    """The digests are those of the report, too."""
    _, job_id = job
    to_certify(services, job_id)
    with services.db.transaction() as session:
        fence = session.get(Job, job_id).report.fence
    make_candidate(services, job_id, fence)
    weights = services.storage.candidate(job_id, fence) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x77")
    with hold_job(services, job_id, CONTROL_STAGES) as lease, pytest.raises(PermanentJobError) as caught:
        certify.certify_job(services, job_id, lease.fence)
    assert caught.value.reason == "candidate_changed"
