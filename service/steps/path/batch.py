"""batch: seal pending requests of a model into a job, at most one job a model at a time."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import Job
from service.domain.batching import seal
from service.domain.states import RequestStatus
from service.observability.tracing import span, traceparent

WINDOW = 4  # times as many pending requests are looked at as a job holds records


def batch_requests(services: Services, model_id: UUID) -> UUID | None:
    """Make a job of this model's window if it closes now; returns the job's id.

    The model's row is locked, so two workers never batch one model at once; the partial unique index on active
    jobs stands behind that.
    """
    try:
        with services.db.transaction("batch") as session:
            model = models.lock(session, model_id)
            if model is None or jobs.has_active_job(session, model_id):
                return None
            room, wait = model.policy["max_batch_records"], model.policy.get("max_wait_seconds")
            picked = seal(
                requests.pending(session, model_id, WINDOW * room),
                max_batch_records=room,
                max_wait_seconds=services.settings.max_wait_seconds if wait is None else wait,
                now=datetime.now(UTC),
            )
            parent = models.version(session, model, model.latest)
            members = requests.lock_pending(session, picked)
            if not members or parent is None:
                return None
            first, *others = (member.traceparent for member in members)
            with span("batch", first, others, model=model.name, requests=len(members)):
                job = Job(
                    model_id=model_id, parent_version_id=parent.id, policy=model.policy, woken_at=datetime.now(UTC),
                    traceparent=traceparent(),
                )  # fmt: skip
                session.add(job)
                session.flush()
                requests.move(session, members, RequestStatus.BATCHED, job_id=job.id)
                jobs.add_event(session, job.id, "stage", {"stage": job.stage, "progress": 0.0})
                log_entries.append(
                    session, "job.batched", job=str(job.id), model=model.name, parent=parent.number,
                    refs=sorted(m.ref for m in members),
                )  # fmt: skip
    except IntegrityError:
        return None  # another job of this model is under way
    services.queue.wake("unlearn", job.id)
    return job.id
