"""A job publishes one verified version, whoever else holds its files."""

import pytest
from sqlalchemy import func, select

from service.audit.verify import verify
from service.db import leases, models
from service.db.tables import Job, Version
from service.domain.errors import LostLease
from service.domain.states import CONTROL_STAGES, Stage
from service.lease import Lease, fail_attempt, hold_job
from service.steps.path import publish
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from tests.service.conftest import REQUESTS
from tests.service.jobs import certified, claim, expire, published, release_folder, to_certify


def test_a_zombie_that_has_renamed_its_release_makes_no_version(services, job, monkeypatch):
    """The lease is lost after every earlier check: the fence inside publish's own transaction refuses it.

    (How one knows: without the `jobs.owned` of that transaction this test ends in a version.)
    """
    _, job_id = job
    old, held = certified(services, job_id), []

    def frozen_here(point: str) -> None:
        if point == "publish.renamed" and not held:
            expire(services, job_id)
            held.append(claim(services, job_id, CONTROL_STAGES))

    monkeypatch.setattr(publish, "reach", frozen_here)
    with pytest.raises(LostLease):
        publish_version(services, job_id, old)
    assert [fence // leases.FENCES for fence in held] == [old // leases.FENCES + 1]
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.PUBLISH
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, held[0])
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 2


def test_a_zombie_cannot_publish(services, job):
    """Publication under an old fence leaves no version, even with everything prepared."""
    _, job_id = job
    to_certify(services, job_id)
    old = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, old)
    expire(services, job_id)
    new = claim(services, job_id, CONTROL_STAGES)
    with pytest.raises(LostLease):
        certify_job(services, job_id, old)
    with pytest.raises(LostLease):
        publish_version(services, job_id, old)
    fail_attempt(services, Lease(services, job_id, old), "told by a zombie", permanent=True)
    with services.db.transaction() as session:
        assert session.get(Job, job_id).stage == Stage.PUBLISH
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, new)


def test_certify_and_publish_make_one_verified_version(api, services, job):
    """The folder passes our own verifier, the request is completed, the working folder is gone."""
    request, job_id = job
    to_certify(services, job_id)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)
        with pytest.raises(LostLease):
            publish_version(services, job_id, lease.fence)
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["status"], state["verdict"], state["version"]) == ("completed", "PASS", 1)
    version = api.get("/v1/models/tiny/versions/latest").json()
    assert (version["version"], version["parent"]) == (1, 0)
    folder = services.storage.release(version["digest"])
    statement = verify(folder).statement
    assert statement["predicate"]["requests"][0]["ref"] == request["ref"]
    assert statement["predicate"]["requests"][0]["commitment"] == request["receipt"]["commitment"]
    assert {f["path"] for f in version["files"]} == {
        "model/model.safetensors",
        "model/config.json",
        "model/generation_config.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/README.md",
        *(f"delta/{name}" for name in ("adapter_model.safetensors", "adapter_config.json", "delta.json")),
        *(f"delta/{name}" for name in ("model_card.md", "README.md")),
        "model.sig",
        "trust.json",
        "certificate.dsse.json",
        "certificate.tlog-proof",
    }
    assert api.get("/v1/models/tiny/versions/1/certificate").content == (folder / "certificate.dsse.json").read_bytes()
    assert not services.storage.jobs_present()


def test_publishing_again_after_a_crash_before_the_commit(services, job, monkeypatch):
    """The renamed folder without a row is found by its digest and becomes the version."""
    _, job_id = job
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)

    def crash(*_):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(models, "set_latest", crash)
        with pytest.raises(RuntimeError):
            publish_version(services, job_id, fence)
    assert len(services.storage.releases()) == 2
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 1
    publish_version(services, job_id, fence)
    assert len(services.storage.releases()) == 2
    with services.db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 2


def test_files_that_did_not_change_are_on_the_disk_once(api, services, model):
    """The tokenizer and the configuration are the parent's own files; the weights and the evidence are not."""
    published(api, services, "a record")
    first, second = (release_folder(api, services, number) for number in (0, 1))
    shared = {path.name for path in (second / "model").iterdir() if path.stat().st_nlink > 1}
    assert shared == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert all((first / "model" / name).samefile(second / "model" / name) for name in shared)
    verify(second)
