"""What a job is given: the parent, version 0, and reference texts that do not overlap too much."""

from uuid import UUID

import pytest

from service.db import jobs, models
from service.db.tables import Model
from service.domain.errors import PermanentJobError
from service.domain.states import Stage
from service.steps.operator.withdraw import withdraw_version
from service.steps.path.batch import batch_requests
from service.steps.path.compute_input import check_files, check_reference_texts, compute_input
from service.steps.path.unlearn import store_rejected, store_stage
from service.steps.path.verify import store_report
from service.steps.upkeep.purge import purge_request
from tests.service.conftest import REQUESTS, only_model, submit
from tests.service.jobs import about, child_report, claim, published


def test_a_later_job_is_given_version_0_as_well(api, services, model):
    """Drift is measured against it, also when the versions between are withdrawn."""
    published(api, services, "a record")
    published(api, services, "another record")
    for number in (0, 1):
        withdraw_version(services, "tiny", number, "superseded", UUID(int=0))
    submit(api)
    job_id = batch_requests(services, only_model(services))
    inputs = compute_input(services, job_id, claim(services, job_id))
    digests = [api.get(f"/v1/models/tiny/versions/{number}").json()["digest"] for number in (0, 2)]
    assert [inputs.first, inputs.parent] == [str(services.storage.release(digest) / "model") for digest in digests]


def test_a_number_means_the_same_request_for_as_long_as_the_job_runs(api, services, model):
    """A deadline that is extended meanwhile gives no result to anybody else."""
    first, second = submit(api, records=[{"text": "a record"}]), submit(api, records=[{"text": "another"}])
    job_id = batch_requests(services, only_model(services))
    fence = claim(services, job_id)
    before = compute_input(services, job_id, fence)
    extended = api.post(f"{REQUESTS}/{first['id']}/extend", json={"reason": "complexity"}).json()
    assert extended["due_at"] > second["due_at"]
    after = compute_input(services, job_id, fence)
    assert (before.texts, before.request_ids) == (after.texts, after.request_ids) == (["a record", "another"], [0, 1])
    report = about(2, memorised=[0], verdicts={"0": "FAIL", "1": "PASS"}, outcome="failed", reason="criterion_missed")
    for stage in (Stage.UNLEARN, Stage.MERGE, Stage.VERIFY):
        store_stage(services, job_id, fence, stage)
    store_report(services, job_id, fence, child_report(report))
    assert [api.get(f"{REQUESTS}/{one['id']}").json()["verdict"] for one in (first, second)] == ["FAIL", "PASS"]


def test_a_rejected_request_that_was_purged_stops_no_other_of_its_job(api, services, model):
    """A further attempt goes on without it, and numbers the others as before."""
    rejected, other = submit(api, records=[{"text": "short"}]), submit(api, records=[{"text": "a record"}])
    job_id = batch_requests(services, only_model(services))
    store_rejected(services, job_id, claim(services, job_id), {0: "too_short"})
    purge_request(services, UUID(rejected["id"]), UUID(int=0))
    inputs = compute_input(services, job_id, 1)
    assert (inputs.texts, inputs.request_ids) == (["a record"], [1])
    assert api.get(f"{REQUESTS}/{other['id']}").json()["status"] == "batched"


def stored_overlap(services) -> dict | None:
    """The overlap in the model's row."""
    with services.db.reading() as session:
        return models.by_name(session, "tiny").heldout.get("overlap")


def plant_reference_texts(services, *, retain: str, heldout: str) -> None:
    """Give the model reference texts as an earlier release stored them, without a count of their overlap."""
    with services.db.transaction() as session:
        model = models.by_name(session, "tiny")
        texts = {"retain": model.retain, "heldout": {k: v for k, v in model.heldout.items() if k != "overlap"}}
        model.retain, model.heldout = texts[retain], texts[heldout]


def test_a_model_of_an_earlier_release_is_measured_with_its_next_job(api, services, model):
    """Once: the row has it from then on."""
    plant_reference_texts(services, retain="retain", heldout="heldout")
    assert stored_overlap(services) is None
    submit(api)
    check_reference_texts(services, batch_requests(services, only_model(services)))
    assert stored_overlap(services) == {"exact": 0, "near": 0}


def test_a_model_whose_heldout_texts_are_its_retain_texts_publishes_nothing_more(api, services, model):
    """An earlier release took it; its jobs are given up before anything is measured."""
    plant_reference_texts(services, retain="heldout", heldout="heldout")
    submit(api)
    job_id = batch_requests(services, only_model(services))
    with pytest.raises(PermanentJobError, match="heldout_overlap"):
        check_reference_texts(services, job_id)
    with services.db.reading() as session:
        records = jobs.by_id(session, job_id).model.heldout["records"]
    assert stored_overlap(services) == {"exact": records, "near": 0}


def flip(path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damaged", ["nothing", "the parent", "version 0", "retain", "heldout", "a missing file", "the base"]
)
def test_a_file_that_was_changed_in_storage_stops_the_job_before_it_is_used(api, services, model, damaged, caplog):
    """The log names the file; the job's reason says what it is about."""
    published(api, services, "a record")
    submit(api)
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        storage, texts = services.storage, {"retain": job.model.retain, "heldout": job.model.heldout}
        parent = storage.release(job.parent_version.digest) / "model"
        first = storage.release(models.version(session, job.model, 0).digest) / "model"
    if damaged == "nothing":
        check_files(services, job_id)
        return
    if damaged == "the base":
        with services.db.transaction() as session:
            session.get(Model, job.model_id).base = "0" * 64
        with pytest.raises(PermanentJobError, match="parent_changed"):
            check_files(services, job_id)
        return
    weights = "model.safetensors"
    places = {"the parent": parent / weights, "version 0": first / weights, "a missing file": parent / "tokenizer.json"}
    path = places.get(damaged) or storage.reference_texts(texts[damaged]["sha256"])
    flip(path)
    if damaged == "a missing file":
        path.unlink()
    with pytest.raises(PermanentJobError, match="parent_changed"):
        check_files(services, job_id)
    assert path.name in caplog.text
