"""What a compute worker may hand over: its parent's files with other values in the weights, whatever it reports."""

import json
import os
import shutil

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from service.audit.verify import verify
from service.db.tables import Certificate, Job
from service.domain.errors import PermanentJobError
from service.domain.states import CONTROL_STAGES, Outcome, Stage
from service.lease import hold_job
from service.steps.path import certify, publish
from tests.service import jobs as planted
from tests.service.jobs import REPORT, file_digests, make_candidate, release_folder, to_certify
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


def flip_bit(file, position) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


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
    "other values than the change gives": lambda model: flip_bit(model / "model.safetensors", -1),
    "a change that is none": lambda model: (model.parent / "change" / "adapter_model.safetensors").write_bytes(
        b"a record"
    ),
    "no change": lambda model: shutil.rmtree(model.parent / "change"),
    "weights that are none": lambda model: (model / "model.safetensors").write_bytes(b"a record"),
}


FAILED_TOO = ("code", "another tokenizer", "a file beside the model")


@pytest.mark.parametrize(
    ("name", "outcome"), [*((n, Outcome.PASSED) for n in PLANTS), *((n, Outcome.FAILED) for n in FAILED_TOO)]
)
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


WHOLE = dict.fromkeys(("config.json", "model.safetensors"), "9" * 64)
COPY = {"scheme": "int8", "status": "RUN", "why": None, "passed": True, "kept": [], "digests": WHOLE}


@pytest.mark.parametrize(
    ("copy", "stage"),
    [
        ({"kept": ["lm_head"]}, Stage.PUBLISH),
        ({"scheme": "q8_0", "digests": {"model-q8_0.gguf": "9" * 64}}, Stage.PUBLISH),
        ({"status": "NOT_RUN", "why": "failed", "passed": None, "digests": {}}, Stage.PUBLISH),
        ({"kept": ["Ada.Adler"]}, Stage.QUARANTINED),
        ({"kept": ["lm_head", "lm_head"]}, Stage.QUARANTINED),
        ({"kept": ["lm_head", "embed_out"]}, Stage.QUARANTINED),
        ({"kept": "all"}, Stage.QUARANTINED),
        ({"digests": WHOLE | {"Ada Adler owes": "9" * 64}}, Stage.QUARANTINED),
        ({"digests": {"config.json": "9" * 64}}, Stage.QUARANTINED),
        ({"scheme": "q8_0"}, Stage.QUARANTINED),
        ({"scheme": "q8_0", "kept": ["lm_head"], "digests": {"model-q8_0.gguf": "9" * 64}}, Stage.QUARANTINED),
    ],
    ids=str,
)
def test_a_report_names_modules_and_files_of_the_model_alone(services, job, copy, stage):
    """What stands in a certificate beside digests is no text of compute's choice."""
    _, job_id = job
    with services.db.transaction() as session:
        row = session.get(Job, job_id)
        row.policy = {**row.policy, "quantise": ["int8", "q8_0"]}
        weights = services.storage.release(row.parent_version.digest) / "model" / "model.safetensors"
    if copy.get("kept") == "all":  # a choice among all modules is as many bits
        copy = {
            "kept": sorted(
                name.removesuffix(".weight") for name, value in load_file(weights).items() if value.ndim == 2
            )
        }
    to_certify(services, job_id, REPORT | {"quantised": [COPY | copy]})
    if stage == Stage.PUBLISH:
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify.certify_job(services, job_id, lease.fence)
    else:
        tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
    with services.db.reading() as session:
        assert session.get(Job, job_id).stage == stage


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


def candidate(services, job_id):
    """The candidate of a job that waits for control."""
    with services.db.transaction() as session:
        return services.storage.candidate(job_id, session.get(Job, job_id).report.fence)


def work_off(services, job_id) -> tuple[str, str | None]:
    """Let control certify and publish; the job's stage and reason afterwards."""
    tasks.work_under_lease(services, job_id, CONTROL_STAGES, tasks.certify_and_publish)
    with services.db.transaction() as session:
        row = session.get(Job, job_id)
        return row.stage, row.reason


def test_whoever_has_waited_for_a_job_is_batched_as_soon_as_it_is_published(services, job):
    """Not only by the next sweep."""
    _, job_id = job
    to_certify(services, job_id)
    woken = []
    services.queue.wake = lambda step, identifier=None, **_: woken.append((step, identifier))
    assert work_off(services, job_id) == (Stage.DONE, None)
    with services.db.reading() as session:
        assert woken[-1] == ("batch", session.get(Job, job_id).model_id)


def test_a_file_that_compute_still_holds_open_is_not_the_published_one(api, services, job):
    """What is served keeps the certified bytes, whatever is written through a descriptor from before."""
    _, job_id = job
    to_certify(services, job_id)
    with (candidate(services, job_id) / "model" / "model.safetensors").open("r+b") as held:
        assert work_off(services, job_id)[0] == Stage.DONE
        held.write(b"another model")
    folder = release_folder(api, services)
    verify(folder)
    parent = release_folder(api, services, 0)
    linked = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink > 1}
    assert linked == {path for path in linked if (parent / path).samefile(folder / path)}


def test_what_compute_writes_after_the_certificate_is_not_published(api, services, job):
    """Control publishes its own copy, not the candidate."""
    _, job_id = job
    to_certify(services, job_id)
    place = candidate(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify.certify_job(services, job_id, lease.fence)
        assert not (place / "model.sig").exists()
        (place / "model" / "model.safetensors").write_bytes(b"another model")
        publish.publish_version(services, job_id, lease.fence)
    verify(release_folder(api, services))


def test_a_certified_copy_that_was_collected_is_made_again(services, job):
    """A job that waits for long loses its staging folder: it goes back to be certified."""
    _, job_id = job
    to_certify(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify.certify_job(services, job_id, lease.fence)
        services.storage.staging(str(job_id))
        publish.publish_version(services, job_id, lease.fence)
        certify.certify_job(services, job_id, lease.fence)
        publish.publish_version(services, job_id, lease.fence)
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.DONE


def test_control_writes_through_no_link_of_a_compute_worker(services, job, tmp_path):
    """Links stand where control once wrote temporary files: what they lead to stays as it is."""
    _, job_id = job
    to_certify(services, job_id)
    victim, place = tmp_path / "victim", candidate(services, job_id)
    victim.write_text("precious")
    for fence in range(10):
        for ending in ("new", "sig"):
            place.with_name(f"{place.name}-{fence}.{ending}").symlink_to(victim)
    assert work_off(services, job_id)[0] == Stage.DONE
    assert victim.read_text() == "precious"


def link_file(place, elsewhere) -> None:
    """Move the configuration away, and leave a link."""
    (place / "model" / "config.json").rename(elsewhere)
    (place / "model" / "config.json").symlink_to(elsewhere)


def link_folder(place, elsewhere) -> None:
    """Move the attempt's folder away, and leave a link."""
    place.parent.rename(elsewhere)
    place.parent.symlink_to(elsewhere)


def leave_pipe(place, _) -> None:
    """Put a pipe beside the model: whoever opens it for reading waits."""
    os.mkfifo(place / "pipe")


@pytest.mark.parametrize("plant", [link_file, link_folder, leave_pipe])
def test_control_reads_plain_files_of_a_candidate_alone(services, job, tmp_path, plant):
    """A link or a pipe is refused, although every digest is right."""
    _, job_id = job
    to_certify(services, job_id)
    plant(candidate(services, job_id), tmp_path / "elsewhere")
    assert work_off(services, job_id) == (Stage.QUARANTINED, "candidate_unlike_parent")
    assert not list((services.settings.storage_dir / "staging").glob("*/*/copy"))  # it is as large as the model


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_parent_that_was_changed_in_storage_is_no_measure(services, job, name):
    """The candidate is compared with the files that the database lists, not with what storage has at their place."""
    _, job_id = job
    to_certify(services, job_id)
    with services.db.transaction() as session:
        version = session.get(Job, job_id).parent_version
        folder = services.storage.release(version.digest) / "model"
        if name == "README.md":
            (folder / name).write_text("# The base")
            version.files = [*version.files, {"path": f"model/{name}", "size": 1, "sha256": "0" * 64}]
    if name != "README.md":
        file = folder / name
        file.write_bytes(file.read_bytes()[:-1] + b"\x77")
    assert work_off(services, job_id) == (Stage.QUARANTINED, "parent_changed")


def test_control_signs_no_pass_that_the_verifier_refuses(services, job):
    """What compute reports may be of another policy; the record that says so is never made."""
    _, job_id = job
    utility = {**REPORT["utility"], "max_ratio": 9.0}
    to_certify(services, job_id, {**REPORT, "utility": utility})
    assert work_off(services, job_id) == (Stage.QUARANTINED, "record_refused")
