"""Celery tasks: each takes an id, asks Postgres whether there is work, and drops the message if not."""

import logging
from uuid import UUID

from service.db import jobs
from service.domain.errors import LostLease
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.steps import batch as batch_step
from service.steps import certify as certify_step
from service.steps import deliver as deliver_step
from service.steps import lease as leases
from service.steps import publish as publish_step
from service.steps import sweep as sweep_step
from worker.app import app, services
from worker.steps.run import run_job

log = logging.getLogger(__name__)
CONTROL_STEPS = {Stage.CERTIFY: certify_step.certify, Stage.PUBLISH: publish_step.publish}


@app.task(name="batch")  # type: ignore[untyped-decorator]
def batch(model_id: str) -> None:
    """Seal a model's window if it closes now."""
    batch_step.batch(services(), UUID(model_id))


@app.task(name="unlearn")  # type: ignore[untyped-decorator]
def unlearn(job_id: str) -> None:
    """Claim a job and run unlearn, merge and verify in a child process."""
    parts = services()
    with leases.hold(parts, UUID(job_id), COMPUTE_STAGES) as lease:
        if lease is None:
            return
        try:
            run_job(parts, lease)
        except Exception as error:
            # As below: no job may stay claimed without a reason.
            log.exception("compute failed job=%s", job_id)
            leases.attempt_failed(parts, lease, type(error).__name__, permanent=False)


@app.task(name="certify")  # type: ignore[untyped-decorator]
def certify(job_id: str) -> None:
    """Claim a job that waits for its certificate or its publication, and take it to the end."""
    parts = services()
    with leases.hold(parts, UUID(job_id), CONTROL_STAGES) as lease:
        if lease is None:
            return
        try:
            while (stage := _stage(lease.job_id)) in CONTROL_STEPS:
                CONTROL_STEPS[stage](parts, lease.job_id, lease.fence)
                lease.steps += 1
        except LostLease:
            log.warning("lease lost job=%s", job_id)
        except Exception as error:
            # Whatever it was, the job must be tried again or given up with a reason, and not stay claimed.
            log.exception("certify or publish failed job=%s", job_id)
            leases.attempt_failed(parts, lease, type(error).__name__, permanent=False)


def _stage(job_id: UUID) -> Stage:
    with services().db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        return Stage(job.stage)


@app.task(name="deliver")  # type: ignore[untyped-decorator]
def deliver() -> None:
    """Make the callbacks that are due."""
    deliver_step.deliver(services())


@app.task(name="sweep")  # type: ignore[untyped-decorator]
def sweep() -> None:
    """Find lost work; remove what ended jobs left."""
    sweep_step.sweep(services())
    sweep_step.collect(services())
