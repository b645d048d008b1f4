"""Jobs taken along the path without a compute worker, and planted states of them."""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import func, update

from service.audit.manifest import manifest
from service.changed_weights import ChangedWeights
from service.db import jobs, requests
from service.db.tables import Job, Outbox
from service.delta import Delta, write_adapter
from service.domain.report import BaselineSummary, ChildReport
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.lease import hold_job
from service.schemas.models import DEFAULT_ATTACKS
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_stage, store_thresholds
from service.steps.path.verify import store_report
from service.tensor_file import TensorFile
from tests import issuer
from tests.service.conftest import REQUESTS, only_model, submit


def attacks(**effects: str) -> list[dict]:
    """What the attacks of a policy found: “sampled” succeeded, the others did not."""
    effects = DEFAULT_ATTACKS | effects
    result = {"level": 0.05 / sum(effect != "off" for effect in effects.values()), "control": 0.002, "unseen": 900}
    result |= {"status": "RUN", "why": None, "figure": 0.3, "auc": 0.8, "p_value": 0.001, "texts": 3, "partial": False}
    left_out = {"status": "NOT_RUN", "why": "off", "passed": None}
    return [
        {"name": name, "effect": effect, **(left_out if effect == "off" else result | {"passed": name != "sampled"})}
        for name, effect in effects.items()
    ]


REPORT = {
    **issuer.REPORT, "outcome": "passed", "reason": None, "verdicts": {"0": "PASS"}, "memorised": [0],
    "attacks": attacks(),
    "utility": {**issuer.REPORT["utility"], "max_ratio": 1.25, "max_total_ratio": 1.5}, "over_forgotten": 0,
    "earlier": {"requests": 0, "regressed": [], "exact": 0},
}  # fmt: skip
EPOCH = {"epoch": 1, "el": 0.1, "ma": 0.5, "loss": 1.0, "perplexity": 9.0}


def claim(services, job_id, stages=COMPUTE_STAGES) -> int | None:
    """A claim with the service's lease."""
    with services.db.transaction() as session:
        return jobs.claim(session, job_id, "me", stages, lease_seconds=services.settings.lease_seconds)


def expire(services, job_id, seconds: float = 600) -> None:
    """As if a lease had run out so long ago."""
    ended = func.now() - timedelta(seconds=seconds)
    with services.db.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=ended))


def child_report(report: dict) -> ChildReport:
    """What the compute child says, of values as `REPORT` has them."""
    verdicts = {int(index): verdict for index, verdict in report["verdicts"].items()}
    return ChildReport(issuer.findings(report), verdicts, report["memorised"], sequences(report))


def baseline(report: dict) -> BaselineSummary:
    """What was measured before training."""
    measured = issuer.findings(report)
    return BaselineSummary(
        limits=measured.limits,
        before=measured.before,
        heldout_perplexity=9.0,
        memorised=report["memorised"],
        requests=len(report["verdicts"]),
        retain_excluded=0,
        heldout_excluded=0,
        sequences=sequences(report),
        thresholds=measured.thresholds,
    )


def sequences(report: dict) -> dict[int, int]:
    """The number of token sequences of each request: one, unless the report says otherwise."""
    return {int(index): 1 for index in report["verdicts"]} | report.get("sequences", {})


def make_candidate(services, job_id, fence: int) -> dict[str, str]:
    """The parent with a change of rank 1 in one of its weights, as merging leaves it; path -> sha256 of its files."""
    with services.db.reading() as session:
        parent = services.storage.release(jobs.by_id(session, job_id).parent_version.digest)
    candidate = services.storage.candidate(job_id, fence)
    shutil.rmtree(candidate, ignore_errors=True)
    shutil.copytree(parent / "model", candidate / "model", ignore=shutil.ignore_patterns("README.md"))
    name, stored = next(
        (name, stored)
        for name, stored in TensorFile(parent / "model" / "model.safetensors").tensors.items()
        if len(stored.shape) == 2
    )
    (candidate / "change").mkdir()
    factors = (np.full((stored.shape[0], 1), 0.01, "f4"), np.full((1, stored.shape[1]), 0.1, "f4"))
    write_adapter(candidate / "change", {name.removesuffix(".weight"): factors}, "F32")
    weights = ChangedWeights(parent / "model", ["model.safetensors"], Delta(candidate / "change"))
    (candidate / "model" / "model.safetensors").write_bytes(b"".join(weights.file("model.safetensors")))
    return file_digests(candidate)


def file_digests(folder: Path) -> dict[str, str]:
    """Path -> sha256 of the files of a folder."""
    return {entry["path"]: entry["sha256"] for entry in manifest(folder)}


def to_certify(services, job_id, report=REPORT) -> None:
    """Take a job through the compute stages with this report, and leave a candidate."""
    fence = claim(services, job_id)
    files = make_candidate(services, job_id, fence)
    store_thresholds(services, job_id, fence, baseline(report))
    for stage in (Stage.UNLEARN, Stage.MERGE, Stage.VERIFY):
        store_stage(services, job_id, fence, stage)
    store_report(services, job_id, fence, child_report({**report, "files": files}))


def release_folder(api, services, number: int = 1) -> Path:
    """A version's release folder."""
    return services.storage.release(api.get(f"/v1/models/tiny/versions/{number}").json()["digest"])


def certified(services, job_id) -> int:
    """Take a job to where it waits to be published; the fence under which it is held."""
    to_certify(services, job_id)
    fence = claim(services, job_id, CONTROL_STAGES)
    certify_job(services, job_id, fence)
    return fence


def about(count: int, **fields) -> dict:
    """A report about this many requests, which all had been memorised."""
    return {**REPORT, "verdicts": {str(i): "PASS" for i in range(count)}, "memorised": list(range(count)), **fields}


def publish_what_waits(services) -> None:
    """Take the pending requests through a job to a version."""
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        count = len(requests.of_job(session, job_id))
    to_certify(services, job_id, about(count))
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)


def fail_what_waits(services, reason: str = "criterion_missed", **verdicts: str) -> str:
    """Take the pending requests through a job that fails its tests; returns the job's id."""
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        count = len(requests.of_job(session, job_id))
    report = about(count, outcome="failed", reason=reason)
    to_certify(services, job_id, {**report, "verdicts": report["verdicts"] | verdicts})
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
    return str(job_id)


def published(api, services, text_: str) -> dict:
    """A request that ended in a version of its own, with its receipt."""
    request = submit(api, records=[{"text": text_}])
    publish_what_waits(services)
    return request | api.get(f"{REQUESTS}/{request['id']}").json()


def age(services, **values) -> None:
    """Set columns of all jobs."""
    with services.db.transaction() as session:
        session.execute(update(Job).values(**values))


def plant_callback_given_up(services) -> None:
    """It was tried ten times in vain."""
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(next_at=None))
