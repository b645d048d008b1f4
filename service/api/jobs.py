"""`/v1/jobs`: jobs and their progress, as documents and as Server-Sent Events."""

import json
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.api.deps import Admin, Reader, ServicesDep, is_auditor
from service.api.paging import Cursor, Limit, ModelFilter, filtered_model
from service.api.requests import to_request_out
from service.api.versions import Form, render_certificate
from service.bootstrap import Services
from service.db import jobs, models
from service.db.api_keys import Caller
from service.db.tables import Job, JobEvent
from service.domain.disclosure import disclosed
from service.domain.errors import Invalid, NotFound
from service.domain.states import TERMINAL_STAGES, Stage
from service.schemas.base import Listing
from service.schemas.requests import JobOut, RequestOut
from service.steps.operator.cancel import cancel_job
from service.steps.operator.retry import retry_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
PING_SECONDS = 15


def to_job_out(job: Job, caller: Caller) -> JobOut:
    """The answer for a job, with the metrics that the caller may see."""
    return JobOut(
        id=job.id,
        model=job.model.name,
        stage=job.stage,
        outcome=job.outcome,
        reason=job.reason,
        progress=job.progress,
        epoch=job.epoch,
        attempts=job.attempts,
        parent=job.parent_version.number,
        version=job.version.number if job.version else None,
        metrics=disclosed(job.metrics, job.metrics.get("submitters"), auditor=is_auditor(caller)),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _find_job(services: Services, job_id: UUID) -> Job:
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    return job


@router.get("")
def listing(
    services: ServicesDep,
    caller: Reader,
    model: ModelFilter = None,
    stage: Stage | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[JobOut]:
    """Jobs, newest first."""
    with services.db.reading() as session:
        page = jobs.listing(session, cursor, limit, model_id=filtered_model(session, model), stage=stage)
    return Listing(items=[to_job_out(job, caller) for job in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}")
def get(job_id: UUID, services: ServicesDep, caller: Reader) -> JobOut:
    """One job. Means over the texts of fewer than three submitters are null, except for keys with the scope `audit`."""
    return to_job_out(_find_job(services, job_id), caller)


@router.post("/{job_id}/cancel")
def cancel(job_id: UUID, services: ServicesDep, caller: Admin) -> JobOut:
    """Stop a job before its result is certified; later this gives a 409. Its open requests fail, and can be retried."""
    cancel_job(services, job_id, caller.id)
    return get(job_id, services, caller)


@router.post("/{job_id}/retry", status_code=202)
def retry(job_id: UUID, services: ServicesDep, caller: Admin) -> list[RequestOut]:
    """Make the failed requests of a quarantined job pending again, once an operator has removed the cause."""
    model, requests = retry_job(services, job_id, caller.id)
    return [to_request_out(services, request, model) for request in requests]


@router.get("/{job_id}/history")
def history(job_id: UUID, services: ServicesDep, caller: Reader) -> list[dict[str, object]]:
    """One object per epoch: epoch, el, ma, their thresholds, loss, perplexity, seconds."""
    submitters = _find_job(services, job_id).metrics.get("submitters")
    with services.db.reading() as session:
        return [disclosed(epoch, submitters, auditor=is_auditor(caller)) for epoch in jobs.history(session, job_id)]


@router.get("/{job_id}/certificate")
def certificate(job_id: UUID, services: ServicesDep, _: Reader, form: Form = None) -> Response:
    """The certificate of a job, including a failed one: a DSSE envelope, or its statement as HTML or Markdown."""
    job = _find_job(services, job_id)
    with services.db.reading() as session:
        row = models.certificate(session, job_id)
    if row is None or job.stage != Stage.DONE:  # a signed certificate is not shown before it is published
        raise NotFound("The job has no certificate yet.")
    if form:
        return render_certificate(row.envelope, form)
    return Response(row.envelope, media_type="application/json", headers={"ETag": f'"{row.digest}"'})


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def events(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    last_event_id: Annotated[str | None, Header(max_length=18)] = None,
) -> EventSourceResponse:
    """Live events of the job: `stage`, `thresholds`, `epoch`, `retry`, `done`, with `progress` in between.

    The stream ends with the job. A client that reconnects sends `Last-Event-ID` to continue after that event.
    """
    if last_event_id is not None and not last_event_id.isdecimal():
        raise Invalid("Not the id of an event.", field="Last-Event-ID")
    await run_in_threadpool(_find_job, services, job_id)
    stream = _stream(services, request.app.state.listener.subscribe(job_id), job_id, int(last_event_id or 0), caller)
    return EventSourceResponse(stream, ping=PING_SECONDS)


async def _stream(
    services: Services, changed: AsyncIterator[None], job_id: UUID, last_event: int, caller: Caller
) -> AsyncIterator[ServerSentEvent]:
    """Events after `last_event`, then new events whenever the job changed."""
    progress = -1.0
    async for _ in changed:
        job, new_events = await run_in_threadpool(_events_after, services, job_id, last_event)
        for event in new_events:
            last_event = event.id
            data = disclosed(event.data, job.metrics.get("submitters"), auditor=is_auditor(caller))
            yield ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
        if job.stage in TERMINAL_STAGES:
            return
        if job.progress != progress:
            progress = job.progress
            data = {"stage": job.stage, "epoch": job.epoch, "progress": progress}
            yield ServerSentEvent(json.dumps(data), event="progress")


def _events_after(services: Services, job_id: UUID, last_event: int) -> tuple[Job, list[JobEvent]]:
    """The job and its events after `last_event`."""
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        return job, jobs.events_after(session, job_id, last_event)
