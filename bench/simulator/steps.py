"""What a job's workers write: the service's own steps, with fixed findings in place of what would be measured."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from uuid import UUID

from sqlalchemy import func, select

from bench.simulator.costs import Costs
from service.bootstrap import Services
from service.db import jobs, log_entries, models
from service.db.tables import DeletionRequest, Job
from service.domain.report import BaselineSummary, ChildReport, Findings
from service.domain.states import Stage
from service.lease import Lease
from service.steps.path import certify, publish
from service.steps.path.unlearn import store_epoch, store_progress, store_stage, store_thresholds
from service.steps.path.verify import store_report
from tests import issuer

Step = tuple[float, str, Callable[[], None]]  # seconds until it, its name, what it writes
EPOCH = {"el": 0.1, "ma": 0.5, "loss": 1.0, "perplexity": 9.0}


@cache
def _findings() -> Findings:
    """Findings of a job that passed."""
    values = {"over_forgotten": 0, "earlier": {"requests": 0, "regressed": [], "exact": 0}}
    return issuer.findings({**issuer.REPORT, **values})


def claimed(services: Services, job_id: UUID) -> tuple[Job, int]:
    """A job's row, and how many requests it holds."""
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        count = session.scalar(select(func.count()).where(DeletionRequest.job_id == job_id))
    assert job is not None
    return job, count or 0


def compute_steps(
    services: Services, lease: Lease, job: Job, requests: int, seconds: float, costs: Costs
) -> list[Step]:
    """What a compute worker writes on a job, from where the last one left it.

    Measurements, each epoch and the merged files are kept: whoever takes over repeats the phase that was under way.

    Args:
        services: The services.
        lease: The claim.
        job: The job as it was claimed.
        requests: How many requests it holds.
        seconds: Of a compute worker for the whole job.
        costs: How that is shared by its phases.

    Returns:
        What it writes, in its order.
    """
    job_id, fence = lease.job_id, lease.fence
    everyone, findings = list(range(requests)), _findings()
    sequences = dict.fromkeys(everyone, 1)
    assert findings.limits is not None
    assert findings.before is not None
    baseline = BaselineSummary(
        findings.limits, findings.before, 9.0, everyone, requests, 0, 0, sequences, findings.thresholds
    )
    report = ChildReport(findings, dict.fromkeys(everyone, "PASS"), everyone, sequences)
    writes: dict[str, Callable[[int], None]] = {
        "unlearn": lambda _: store_stage(services, job_id, fence, Stage.UNLEARN),
        "progress": lambda _: store_progress(services, job_id, fence, "measure", 0.0),
        "thresholds": lambda _: store_thresholds(services, job_id, fence, baseline),
        "epoch": lambda number: store_epoch(services, job_id, fence, {"epoch": number, **EPOCH}),
        "merge": lambda _: store_stage(services, job_id, fence, Stage.MERGE),
        "verify": lambda _: store_stage(services, job_id, fence, Stage.VERIFY),
        "report": lambda _: store_report(services, job_id, fence, report),
    }
    return [(passed, name, partial(writes[name], number)) for passed, name, number in phases(job, seconds, costs)]


def phases(job: Job, seconds: float, costs: Costs) -> Iterator[tuple[float, str, int]]:
    """The seconds before each write of a compute worker, the write's name, and the epoch."""
    measure, train, merge, verify = (share * seconds for share in costs.shares)
    yield 0.0, "unlearn", 0
    yield 0.0, "progress", 0
    if job.thresholds_index is None:
        yield measure, "thresholds", 0
    for number in range(job.epoch + 1, costs.epochs + 1):
        yield train / costs.epochs, "epoch", number
    if job.stage != Stage.VERIFY:
        yield 0.0, "merge", 0
        yield merge, "verify", 0
    yield verify, "report", 0


def store_certificate(services: Services, lease: Lease) -> None:
    """Store an envelope of a few bytes as the job's certificate, as `certify_job` does with a signed one."""
    certify._store_certificate(services, lease.job_id, lease.fence, b"{}" + lease.job_id.bytes)


def store_version(services: Services, lease: Lease) -> None:
    """Store the proof and the version of a job, as `publish_version` does once the files are in their place."""
    job_id = lease.job_id
    with services.db.transaction("proof") as session:
        jobs.owned(session, job_id, lease.fence)
        certificate = models.certificate(session, job_id)
        assert certificate is not None
        certificate.proof = "{}"
    with services.db.transaction("publish") as session:
        job = jobs.owned(session, job_id, lease.fence)
        models.block_collection(session)
        number = models.next_number(session, job.model_id)
        digest = hashlib.sha256(job_id.bytes).hexdigest()
        publish._insert_version(session, job, number, digest, [])
        what = {"job": str(job_id), "number": number, "manifest": digest, "certificate": certificate.digest}
        log_entries.append(session, "version.published", **what)
