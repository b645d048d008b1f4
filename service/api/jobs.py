"""`/v1/jobs`: progress, as a document and as Server-Sent Events."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.api.deps import Admin, Parts, Reader
from service.api.paging import Cursor, Limit
from service.api.requests import shown as shown_request
from service.api.told import told
from service.api.versions import Form, rendered
from service.app import Services
from service.db import jobs as queries
from service.db import models
from service.db.keys import Caller
from service.db.tables import Job, JobEvent
from service.domain.errors import Invalid, NotFound
from service.domain.states import TERMINAL_STAGES, Stage
from service.schemas.base import Listing
from service.schemas.requests import JobOut, RequestOut
from service.steps.retry import retry_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
PING_SECONDS = 15


def shown(job: Job, key: Caller) -> JobOut:
    """A job as it is answered."""
    metrics = told(job.metrics, job.metrics.get("memorised"), key)
    return JobOut(
        id=job.id, model=job.model.name, stage=job.stage, outcome=job.outcome, reason=job.reason,
        progress=job.progress, epoch=job.epoch, attempts=job.attempts, parent=job.parent_version.number,
        version=job.version.number if job.version else None, metrics=metrics, created_at=job.created_at,
        started_at=job.started_at, finished_at=job.finished_at,
    )  # fmt: skip


def _find(parts: Services, job_id: UUID) -> Job:
    with parts.db.reading() as session:
        job = queries.by_id(session, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    return job


@router.get("")
def listing(
    parts: Parts,
    key: Reader,
    model: Annotated[str | None, Query(max_length=63)] = None,
    stage: Stage | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[JobOut]:
    """Jobs, newest first."""
    with parts.db.reading() as session:
        page = queries.listing(session, cursor, limit, model=model, stage=stage)
    return Listing(items=[shown(j, key) for j in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}")
def get(job_id: UUID, parts: Parts, key: Reader) -> JobOut:
    """One job; means of fewer than three requests go to keys with the scope `audit` alone, others get null."""
    return shown(_find(parts, job_id), key)


@router.post("/{job_id}/retry", status_code=202)
def retry(job_id: UUID, parts: Parts, _: Admin) -> list[RequestOut]:
    """Put the failed requests of a job that was given up back in line, for an operator who has removed the reason."""
    model, requests = retry_job(parts, job_id)
    return [shown_request(request, model) for request in requests]


@router.get("/{job_id}/history")
def history(job_id: UUID, parts: Parts, key: Reader) -> list[dict[str, Any]]:
    """One mapping an epoch: epoch, el, ma, their limits, loss, perplexity, seconds."""
    trained = _find(parts, job_id).metrics.get("memorised")
    with parts.db.reading() as session:
        return [told(epoch, trained, key) for epoch in queries.history(session, job_id)]


@router.get("/{job_id}/certificate")
def certificate(job_id: UUID, parts: Parts, _: Reader, form: Form = None) -> Response:
    """The signed record of the job, of a failed one too: a DSSE envelope, or what it says."""
    job = _find(parts, job_id)
    with parts.db.reading() as session:
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
    parts: Parts,
    key: Reader,
    last_event_id: Annotated[str | None, Header(max_length=18)] = None,
) -> EventSourceResponse:
    """What happens in the job, live: `stage`, `thresholds`, `epoch`, `retry`, `done`, and `progress` between.

    Ends when the job does. After a break, `Last-Event-ID` goes on where it was.
    """
    if last_event_id is not None and not last_event_id.isdecimal():
        raise Invalid("Not the id of an event.", field="Last-Event-ID")
    await run_in_threadpool(_find, parts, job_id)
    stream = _stream(parts, request.app.state.changes.subscribe(job_id), job_id, int(last_event_id or 0), key)
    return EventSourceResponse(stream, ping=PING_SECONDS)


async def _stream(
    parts: Services, changed: AsyncIterator[None], job_id: UUID, last: int, key: Caller
) -> AsyncIterator[ServerSentEvent]:
    """Events after `last`, then more whenever the database says that the job changed."""
    progress = -1.0
    async for _ in changed:
        job, new = await run_in_threadpool(_news, parts, job_id, last)
        for event in new:
            last = event.id
            data = told(event.data, job.metrics.get("memorised"), key)
            yield ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
        if job.stage in TERMINAL_STAGES:
            return
        if job.progress != progress:
            progress = job.progress
            data = {"stage": job.stage, "epoch": job.epoch, "progress": progress}
            yield ServerSentEvent(json.dumps(data), event="progress")


def _news(parts: Services, job_id: UUID, last: int) -> tuple[Job, list[JobEvent]]:
    with parts.db.reading() as session:
        job = queries.by_id(session, job_id)
        assert job is not None
        return job, queries.events_after(session, job_id, last)
