"""batch: make a job of pending requests of a model. A model has at most one active job.

A job takes in what comes until a worker claims it. Else those requests would wait for the model's next job, and so
twice for a worker.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from psycopg.errors import UniqueViolation
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.collected import is_collected
from service.db import job_events, jobs, log_entries, models, pending_requests, requests, waiting_jobs
from service.db.tables import DeletionRequest, Job, Model, Version
from service.domain.batching import requests_that_fit, requests_to_batch
from service.domain.states import RequestStatus
from service.observability.tracing import span, traceparent
from service.subjects.overlap import measure_overlap, read_stored_texts

MAX_REQUESTS = 1000  # requests of a job, whatever its policy: an entry of the log names them all, in 64 KiB at most
ONE_ACTIVE_JOB = "uq_jobs_active_model"
LOOK_AHEAD = 4  # pending requests to look at, for each record that a job holds


class Unmeasured(Exception):
    """An earlier release registered the model, and did not count the overlap of its reference texts."""


def batch_requests(services: Services, model_id: UUID) -> UUID | None:
    """Make a job of a model's pending requests if their window closes now; returns the job's id.

    If the model has a job that waits for a worker, they join that one as far as it has room, and None is returned.

    The transaction locks the model's row, so two workers never batch one model at once. The partial unique index on
    active jobs guarantees the same.
    """
    try:
        with services.db.transaction("batch") as session:
            model = models.lock(session, model_id)
            if model is None:
                return None
            has_job = jobs.has_active_job(session, model_id)
            job_id = _join(session, model) if has_job else _make_job(services, session, model)
    except Unmeasured:
        _measure_overlap(services, model_id)
        return batch_requests(services, model_id)
    except IntegrityError as error:
        if not isinstance(error.orig, UniqueViolation) or error.orig.diag.constraint_name != ONE_ACTIVE_JOB:
            raise
        return None  # another job of this model is active
    if job_id:
        services.queue.wake("unlearn", job_id)
    return None if has_job else job_id


def _make_job(services: Services, session: Session, model: Model) -> UUID | None:
    """Make a job of the requests whose window closes now."""
    if "overlap" not in model.heldout:
        raise Unmeasured
    sealed = _sealed_requests(services, session, model)[:MAX_REQUESTS]
    parent = models.newest_version(session, model)
    batch = pending_requests.lock_pending(session, sealed)
    if not batch or parent is None:
        return None
    if is_collected(services.storage, parent):  # every later version was withdrawn; the sweep comes again
        services.queue.wake("rebuild", parent.id)
        return None
    return _insert_job(session, model, parent, batch).id


def _join(session: Session, model: Model) -> UUID | None:
    """Let pending requests join the model's job, if no worker has claimed it yet; the job's id if some did.

    The job is locked for as long as it takes to store that, because claims pass over what is locked.
    """
    job = waiting_jobs.unclaimed(session, model)
    if job is None:
        return None
    members, records = waiting_jobs.size(session, job.id)
    room = job.policy["max_batch_records"] - records
    if room <= 0 or members >= MAX_REQUESTS:
        return None
    joining = requests_that_fit(pending_requests.window(session, model.id, LOOK_AHEAD * room), room)
    batch = pending_requests.lock_pending(session, joining[: MAX_REQUESTS - members])
    if not batch or not waiting_jobs.lock_unclaimed(session, job.id):
        return None
    first, *others = (request.traceparent for request in batch)
    with span("batch", first, [*others, job.traceparent], model=model.name, requests=len(batch)):
        requests.move(session, batch, RequestStatus.BATCHED, job_id=job.id)
        refs = sorted(request.ref for request in batch)
        log_entries.append(session, "job.joined", job=str(job.id), refs=refs)
    return job.id


def _measure_overlap(services: Services, model_id: UUID) -> None:
    """Count the held-out texts of a model that are also retain texts, as registering it does by now.

    Compute workers may not write what the certificate will say of the reference texts.
    """
    with services.db.reading() as session:
        model = models.by_id(session, model_id)
    paths = [services.storage.reference_texts(texts["sha256"]) for texts in (model.retain, model.heldout)]
    overlap = measure_overlap(*map(read_stored_texts, paths))
    with services.db.transaction() as session:
        models.store_overlap(session, model_id, overlap)


def _sealed_requests(services: Services, session: Session, model: Model) -> list[UUID]:
    """The pending requests of a model that form a job now.

    The parts of a failed job that was split, and other requests, take turns.
    """
    part, others = pending_requests.next_part(session, model.id), _closed_window(services, session, model)
    if part and others:
        return others if jobs.newest_was_split(session, model.id) else part
    return part or others


def _closed_window(services: Services, session: Session, model: Model) -> list[UUID]:
    """The requests that form a job because their window closes now."""
    max_records, wait = model.policy["max_batch_records"], model.policy.get("max_wait_seconds")
    return requests_to_batch(
        pending_requests.window(session, model.id, LOOK_AHEAD * max_records),
        max_batch_records=max_records,
        max_wait_seconds=services.settings.max_wait_seconds if wait is None else wait,
        now=datetime.now(UTC),
    )


def _insert_job(session: Session, model: Model, parent: Version, batch: Sequence[DeletionRequest]) -> Job:
    """Make a job of these requests."""
    first, *others = (request.traceparent for request in batch)
    with span("batch", first, others, model=model.name, requests=len(batch)):
        job = Job(model_id=model.id, parent_version_id=parent.id, policy=model.policy, traceparent=traceparent())
        job.split_of = batch[0].split_job_id
        job.woken_at = datetime.now(UTC)
        session.add(job)
        session.flush()
        requests.move(session, batch, RequestStatus.BATCHED, job_id=job.id)
        job_events.add(session, job.id, "stage", {"stage": job.stage, "progress": 0.0})
        refs = sorted(request.ref for request in batch)
        log_entries.append(session, "job.batched", job=str(job.id), model=model.name, parent=parent.number, refs=refs)
    return job
