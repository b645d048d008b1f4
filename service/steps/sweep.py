"""sweep: find what a lost message, a dead worker or a crash left lying, and send it on its way again."""

import shutil
import time
from datetime import timedelta

from service.app import Services
from service.db import jobs, models, requests
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES
from service.steps.lease import quarantine

ORPHAN_AGE = timedelta(days=1)


def sweep(services: Services) -> None:
    """Wake batching for models with pending requests, claimable jobs, and callbacks that are due."""
    quiet = services.settings.lease_seconds
    with services.db.transaction() as session:
        for job in jobs.exhausted(session, services.settings.max_attempts):
            quarantine(session, job, "attempts_exhausted")
        waiting = requests.pending_models(session)
        compute = jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=quiet)
        control = jobs.wakeable(session, CONTROL_STAGES, quiet_seconds=quiet)
    for model_id in waiting:
        services.queue.wake("batch", model_id, expires=quiet)
    for job_id in compute:
        services.queue.wake("unlearn", job_id, expires=quiet)
    for job_id in control:
        services.queue.wake("certify", job_id, expires=quiet)
    services.queue.wake("deliver", expires=services.settings.sweep_seconds)


def collect(services: Services) -> None:
    """Remove working folders of ended jobs and release folders that never became a version."""
    storage = services.storage
    present = storage.jobs_present()
    with services.db.transaction() as session:
        done = jobs.ended(session, present)
        known = models.digests(session)
    for job_id in done:
        storage.discard_job(job_id)
    for folder in storage.releases():
        if folder.name not in known and time.time() - folder.stat().st_mtime > ORPHAN_AGE.total_seconds():
            shutil.rmtree(folder)
