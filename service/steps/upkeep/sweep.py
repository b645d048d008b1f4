"""sweep: wake work that a lost message, a dead worker or a crash left behind, and remove garbage."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import (
    callback_lanes,
    claims,
    compute_workers,
    corpora,
    jobs,
    models,
    outbox,
    pending_requests,
    rechecks,
    requests,
    tallies,
)
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES
from service.lease import quarantine_job

MAX_UNRESOLVED = 200  # requests woken by one sweep


def run_parts(services: Services, *parts: Callable[[Services], object]) -> None:
    """Run parts that do not need each other, in their order, each whatever another raises; the last error is raised."""
    with ExitStack() as stack:
        for part in reversed(parts):
            stack.callback(part, services)


def wake_lost_work(services: Services) -> None:
    """Give up what has lost too many workers, alert, and wake what a lost message or a dead worker left behind."""
    run_parts(services, _quarantine_lost, _prepare_outbox, _compact_tallies, _wake)


def _prepare_outbox(services: Services) -> None:
    """Queue alerts of deadlines, bring callbacks and lanes up to date, and forget workers that are gone."""
    settings = services.settings
    with services.db.transaction() as session:
        _enqueue_alerts(session, settings.alert_days)
        outbox.assign_keys(session)
        callback_lanes.forget_old(session)
        compute_workers.forget_unseen(session)
        largest = compute_workers.largest_slot(session, settings.sweep_seconds)
        claims.forget_outgrown(session, largest, quiet_seconds=settings.lease_seconds)


def _compact_tallies(services: Services) -> None:
    """Add up what the tallies of requests have gathered."""
    with services.db.transaction() as session:
        tallies.compact(session)


def _wake(services: Services) -> None:
    """Wake batching, claimable jobs, unresolved requests, unfinished corpora, and callbacks that are due."""
    quiet = services.settings.lease_seconds
    with services.db.transaction() as session:
        waiting = pending_requests.waiting_models(session)
        compute = jobs.wakeable(session, COMPUTE_STAGES, quiet_seconds=quiet)
        control = jobs.wakeable(session, CONTROL_STAGES, quiet_seconds=quiet)
        unresolved, unindexed = requests.unresolved(session, MAX_UNRESOLVED), corpora.unfinished(session)
    for model_id in waiting:
        services.queue.wake("batch", model_id, expires=quiet)
    for job_id in compute:
        services.queue.wake("unlearn", job_id, expires=quiet)
    for job_id in control:
        services.queue.wake("certify", job_id, expires=quiet)
    sweep_interval = services.settings.sweep_seconds
    for request_id in unresolved:
        services.queue.wake("resolve", request_id, expires=sweep_interval)
    for corpus_id in unindexed:
        services.queue.wake("index", corpus_id, expires=sweep_interval)
    services.queue.wake("deliver", expires=sweep_interval)


def _enqueue_alerts(session: Session, days: float) -> None:
    """Alert the operator of requests that are overdue, or due within `days`."""
    now = datetime.now(UTC)
    outbox.enqueue_due_alerts(session, now, "overdue")
    outbox.enqueue_due_alerts(session, now + timedelta(days=days), "due_soon")


def _quarantine_lost(services: Services) -> None:
    """Quarantine every job that has lost too many workers."""
    while _quarantine_one(services):
        pass


def _quarantine_one(services: Services) -> bool:
    """Quarantine one such job. One per transaction: after an append to the log, it takes no lock."""
    with services.db.transaction() as session:
        job = jobs.lost_too_often(session, services.settings.max_losses)
        if job is not None:
            quarantine_job(session, job, "workers_lost", services.settings.max_split_jobs)
        return job is not None


def collect_garbage(services: Services) -> None:
    """Complete storage's ledger; remove folders of ended jobs, and files that no version or model names.

    The collector renames garbage while no transaction can make a version, and removes it afterwards.
    """
    storage, age = services.storage, services.settings.orphan_seconds
    present = storage.jobs_present()
    ledger = storage.published()
    with services.db.transaction() as session:
        ended = set(present) - jobs.unfinished(session, present) - rechecks.unfinished(session, present)
        missing = models.published(session).items() - ledger.items()
        withdrawn = models.withdrawn(session).items() - storage.withdrawn().items()
    for (model, number), digest in missing:
        storage.add_published(model, number, digest)
    for (model, number), reason in withdrawn:
        storage.add_withdrawn(model, number, reason)
    for doomed in storage.set_aside_before(older_than=age):  # left by a process that died or froze
        _remove(services, doomed)
    published = set(ledger.values())
    old = [digest for digest, seconds in storage.releases().items() if digest not in published and seconds > age]
    old += storage.leftovers(older_than=age)
    digests = {name: name.rpartition("/")[2] for name in old}
    with services.db.reading() as session:  # most are in use: no lock is taken for them
        named = models.known_digests(session, [*digests.values()]) | models.reference_text_digests(session)
    for name, digest in digests.items():
        if digest in named:
            continue
        with services.db.transaction() as session:  # one for each: storage may be slow, and the lock must hold
            models.lock_collection(session)
            if models.known_digests(session, [digest]) or digest in models.reference_text_digests(session):
                continue
            doomed = storage.set_aside(name)
        _remove(services, doomed)
    run_parts(services, *(partial(_discard, job_id) for job_id in ended))


def _discard(job_id: UUID, services: Services) -> None:
    services.storage.discard_job(job_id)


def _remove(services: Services, doomed: str) -> None:
    """Remove what was set aside, but bring releases back that a version names by now.

    If this process was frozen, it may have lost the lock since it checked; so it checks again.
    """
    with services.db.transaction() as session:
        models.lock_collection(session)
        if models.known_digests(session, services.storage.releases_aside(doomed)):
            services.storage.restore_set_aside(doomed)
    services.storage.remove_set_aside(doomed)  # a release that exists again was not moved back
