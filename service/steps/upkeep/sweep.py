"""sweep: find what a lost message, a dead worker or a crash left lying, and send it on its way again."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import corpora, jobs, models, outbox, requests
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES
from service.files import age_seconds
from service.lease import quarantine_job

AT_ONCE = 200


def wake_lost_work(services: Services) -> None:
    """Wake batching for models with pending requests, claimable jobs, and callbacks that are due."""
    quiet = services.settings.lease_seconds
    while _give_one_up(services):
        pass
    with services.db.transaction() as session:
        waiting = requests.pending_models(session)
        compute = jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=quiet)
        control = jobs.wakeable(session, CONTROL_STAGES, quiet_seconds=quiet)
        unresolved, unindexed = requests.unresolved(session, AT_ONCE), corpora.unfinished(session)
        _alert(session, services.settings.alert_days)
    for model_id in waiting:
        services.queue.wake("batch", model_id, expires=quiet)
    for job_id in compute:
        services.queue.wake("unlearn", job_id, expires=quiet)
    for job_id in control:
        services.queue.wake("certify", job_id, expires=quiet)
    often = services.settings.sweep_seconds
    for request_id in unresolved:
        services.queue.wake("resolve", request_id, expires=often)
    for corpus_id in unindexed:
        services.queue.wake("index", corpus_id, expires=often)
    services.queue.wake("deliver", expires=often)


def _alert(session: Session, days: float) -> None:
    """Tell the operator what is due soon, and what is late."""
    now = datetime.now(UTC)
    outbox.enqueue_due_alerts(session, now, "overdue")
    outbox.enqueue_due_alerts(session, now + timedelta(days=days), "due_soon")


def _give_one_up(services: Services) -> bool:
    """One at a time: whoever has appended to the log takes no lock after it."""
    with services.db.transaction() as session:
        job = jobs.exhausted(session, services.settings.max_attempts)
        if job is not None:
            quarantine_job(session, job, "attempts_exhausted")
        return job is not None


def collect_garbage(services: Services) -> None:
    """Remove working folders of ended jobs, and what no version, model or job names; complete storage's ledger.

    What is doomed is renamed while no version can be made, and removed afterwards.
    """
    storage, age = services.storage, services.settings.orphan_seconds
    present = storage.jobs_present()
    noted = storage.published()
    with services.db.transaction() as session:
        ended = set(present) - jobs.unfinished(session, present)
        missing = models.published(session).items() - noted.items()
    for job_id in ended:
        storage.discard_job(job_id)
    for (model, number), digest in missing:
        storage.add_published(model, number, digest)
    for path in storage.set_aside_before(
        older_than=age
    ):  # by a process that died, or was frozen, before it removed them
        _remove(services, path)
    old = [path for path in storage.releases() if path.name not in noted.values() and age_seconds(path) > age]
    old += storage.leftovers(older_than=age)
    if old:
        with services.db.transaction() as session:
            models.lock_collection(session)
            named = models.known_digests(session, [path.name for path in old]) | models.reference_text_digests(session)
            doomed = [storage.set_aside(path) for path in old if path.name not in named]
        for path in doomed:
            _remove(services, path)


def _remove(services: Services, doomed: Path) -> None:
    """Remove a doomed folder for good, but put back what a version has come to name.

    The lock may have been lost meanwhile, if this process was frozen; so the question is asked again.
    """
    with services.db.transaction() as session:
        models.lock_collection(session)
        if not doomed.is_dir():
            return  # somebody else was faster
        names = [path.name for path in doomed.iterdir()]
        if models.known_digests(session, names):
            services.storage.restore_set_aside(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what was made anew meanwhile is not moved back
