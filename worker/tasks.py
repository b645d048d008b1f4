"""Celery tasks: each takes an id, asks Postgres whether there is work, and drops the message if not."""

from collections.abc import Callable
from uuid import UUID

from service.app import Services
from service.db import jobs
from service.db.tables import Job
from service.domain.errors import Hopeless, LostLease, Outdated
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.log import LogBusy
from service.logs import logger
from service.steps import batch as batch_step
from service.steps import certify as certify_step
from service.steps import deliver as deliver_step
from service.steps import index as index_step
from service.steps import lease as leases
from service.steps import publish as publish_step
from service.steps import purge as purge_step
from service.steps import resolve as resolve_step
from service.steps import restore as restore_step
from service.steps import sweep as sweep_step
from service.tracing import span
from worker.app import app, services, stopping
from worker.steps.run import run_job

log = logger(__name__)
CONTROL_STEPS = {Stage.CERTIFY: certify_step.certify, Stage.PUBLISH: publish_step.publish}


@app.task(name="batch")  # type: ignore[untyped-decorator]
def batch(model_id: str) -> None:
    """Seal a model's window if it closes now."""
    batch_step.batch(services(), UUID(model_id))


@app.task(name="unlearn")  # type: ignore[untyped-decorator]
def unlearn(job_id: str) -> None:
    """Claim a job and run unlearn, merge and verify in a child process."""
    holding(services(), UUID(job_id), COMPUTE_STAGES, run_job)


@app.task(name="certify")  # type: ignore[untyped-decorator]
def certify(job_id: str) -> None:
    """Claim a job that waits for its certificate or its publication, and take it to the end."""
    holding(services(), UUID(job_id), CONTROL_STAGES, certify_and_publish)


def holding(
    parts: Services, job_id: UUID, stages: frozenset[Stage], work: Callable[[Services, leases.Lease], None]
) -> None:
    """Do `work` on a job if it can be claimed; however that ends, the job does not stay claimed without a reason."""
    with leases.hold(parts, job_id, stages) as lease:
        if lease is None:
            return
        try:
            try:
                work(parts, lease)
            except Outdated:
                if not restore_step.reconcile(parts).adopted:
                    raise Hopeless("version_in_storage") from None
        except LostLease:
            log.warning("lease lost", job=job_id)
        except LogBusy as error:
            log.warning("handed back", job=job_id, error=str(error))
            leases.hand_back(parts, lease, delay_seconds=parts.settings.retry_seconds)
        except Hopeless as error:
            leases.attempt_failed(parts, lease, error.reason, permanent=True)
        except Exception as error:
            log.exception("an attempt failed", job=job_id)
            leases.attempt_failed(parts, lease, type(error).__name__, permanent=False)


def certify_and_publish(parts: Services, lease: leases.Lease) -> None:
    """What a control worker does with a job, as far as it is to be done still; a stop is heeded between its steps."""
    while (job := _job(parts, lease.job_id)).stage in CONTROL_STEPS:
        if stopping.is_set():
            leases.hand_back(parts, lease)
            return
        with span(job.stage, job.traceparent, job=str(job.id), fence=lease.fence):
            CONTROL_STEPS[Stage(job.stage)](parts, lease.job_id, lease.fence)
        lease.steps += 1


def _job(parts: Services, job_id: UUID) -> Job:
    with parts.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        return job


@app.task(name="deliver")  # type: ignore[untyped-decorator]
def deliver() -> None:
    """Make the callbacks that are due."""
    deliver_step.deliver(services(), go_on=lambda: not stopping.is_set())


@app.task(name="index")  # type: ignore[untyped-decorator]
def index(corpus_id: str) -> None:
    """Index a corpus, from where it stands."""
    index_step.index(services(), UUID(corpus_id), go_on=lambda: not stopping.is_set())


@app.task(name="resolve")  # type: ignore[untyped-decorator]
def resolve(request_id: str) -> None:
    """Find the records that a request is about."""
    resolve_step.resolve(services(), UUID(request_id), go_on=lambda: not stopping.is_set())


@app.task(name="sweep")  # type: ignore[untyped-decorator]
def sweep() -> None:
    """Find lost work."""
    sweep_step.sweep(services())


@app.task(name="collect")  # type: ignore[untyped-decorator]
def collect() -> None:
    """Remove what ended jobs and crashes left, and texts whose time is over; bring a restored database up to date."""
    parts = services()
    restore_step.reconcile(parts)
    purge_step.purge_again(parts)
    purge_step.purge(parts)
    sweep_step.collect(parts)
    parts.log.sign()  # a checkpoint for whoever asks, as young as the last collection
