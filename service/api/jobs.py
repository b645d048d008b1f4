"""`/v1/jobs`: progress, as a document and as Server-Sent Events."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.api.deps import Admin, Reader, ServicesDep, is_auditor
from service.api.paging import Cursor, Limit
from service.api.requests import shown as shown_request
from service.api.versions import Form, rendered
from service.bootstrap import Services
from service.db import jobs, models
from service.db.api_keys import Caller
from service.db.tables import Job, JobEvent
from service.domain.disclosure import disclosed
from service.domain.errors import Invalid, NotFound
from service.domain.states import TERMINAL_STAGES, Stage
from service.schemas.base import Listing
from service.schemas.requests import JobOut, RequestOut
from service.steps.operator.retry import retry_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
PING_SECONDS = 15


def shown(job: Job, key: Caller) -> JobOut:
    """A job as it is answered."""
    metrics = disclosed(job.metrics, job.metrics.get("submitters"), auditor=is_auditor(key))
    return JobOut(
        id=job.id, model=job.model.name, stage=job.stage, outcome=job.outcome, reason=job.reason,
        progress=job.progress, epoch=job.epoch, attempts=job.attempts, parent=job.parent_version.number,
        version=job.version.number if job.version else None, metrics=metrics, created_at=job.created_at,
        started_at=job.started_at, finished_at=job.finished_at,
    )  # fmt: skip


def _find(services: Services, job_id: UUID) -> Job:
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    return job


@router.get("")
def listing(
    services: ServicesDep,
    key: Reader,
    model: Annotated[str | None, Query(max_length=63)] = None,
    stage: Stage | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[JobOut]:
    """Jobs, newest first."""
    with services.db.reading() as session:
        page = jobs.listing(session, cursor, limit, model=model, stage=stage)
    return Listing(items=[shown(j, key) for j in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}")
def get(job_id: UUID, services: ServicesDep, key: Reader) -> JobOut:
    """One job; means of fewer than three requests go to keys with the scope `audit` alone, others get null."""
    return shown(_find(services, job_id), key)


@router.post("/{job_id}/retry", status_code=202)
def retry(job_id: UUID, services: ServicesDep, _: Admin) -> list[RequestOut]:
    """Put the failed requests of a job that was given up back in line, for an operator who has removed the reason."""
    model, requests = retry_job(services, job_id)
    return [shown_request(request, model) for request in requests]


@router.get("/{job_id}/history")
def history(job_id: UUID, services: ServicesDep, key: Reader) -> list[dict[str, Any]]:
    """One mapping an epoch: epoch, el, ma, their limits, loss, perplexity, seconds."""
    submitters = _find(services, job_id).metrics.get("submitters")
    with services.db.reading() as session:
        return [disclosed(epoch, submitters, auditor=is_auditor(key)) for epoch in jobs.history(session, job_id)]


@router.get("/{job_id}/certificate")
def certificate(job_id: UUID, services: ServicesDep, _: Reader, form: Form = None) -> Response:
    """The signed record of the job, of a failed one too: a DSSE envelope, or what it says."""
    job = _find(services, job_id)
    with services.db.reading() as session:
        found = models.certificate(session, job_id)
    if found is None or job.stage != Stage.DONE:  # one that is signed but not published yet is nobody's
        raise NotFound("The job has no certificate yet.")
    if form:
        return rendered(found.envelope, form)
    return Response(found.envelope, media_type="application/json", headers={"ETag": f'"{found.digest}"'})


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def events(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    key: Reader,
    last_event_id: Annotated[str | None, Header(max_length=18)] = None,
) -> EventSourceResponse:
    """What happens in the job, live: `stage`, `thresholds`, `epoch`, `retry`, `done`, and `progress` between.

    Ends when the job does. After a break, `Last-Event-ID` goes on where it was.
    """
    if last_event_id is not None and not last_event_id.isdecimal():
        raise Invalid("Not the id of an event.", field="Last-Event-ID")
    await run_in_threadpool(_find, services, job_id)
    stream = _stream(services, request.app.state.listener.subscribe(job_id), job_id, int(last_event_id or 0), key)
    return EventSourceResponse(stream, ping=PING_SECONDS)


async def _stream(
    services: Services, changed: AsyncIterator[None], job_id: UUID, last: int, key: Caller
) -> AsyncIterator[ServerSentEvent]:
    """Events after `last`, then more whenever the database says that the job changed."""
    progress = -1.0
    async for _ in changed:
        job, new = await run_in_threadpool(_news, services, job_id, last)
        for event in new:
            last = event.id
            data = disclosed(event.data, job.metrics.get("submitters"), auditor=is_auditor(key))
            yield ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
        if job.stage in TERMINAL_STAGES:
            return
        if job.progress != progress:
            progress = job.progress
            data = {"stage": job.stage, "epoch": job.epoch, "progress": progress}
            yield ServerSentEvent(json.dumps(data), event="progress")


def _news(services: Services, job_id: UUID, last: int) -> tuple[Job, list[JobEvent]]:
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        return job, jobs.events_after(session, job_id, last)
