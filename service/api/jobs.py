"""`/v1/jobs`: jobs and their progress, as documents and as Server-Sent Events.

A job has requests of many submitters. A key with `submit` alone sees the jobs of its own requests, and of these the
progress: no metrics, which are about all requests together.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.api.deps import (
    SEES_ALL_REQUESTS,
    Admin,
    JobReader,
    MetricsReader,
    ServicesDep,
    is_auditor,
    restricted_to,
)
from service.api.guard import GuardedRoute
from service.api.paging import Cursor, Limit, ModelFilter, filtered_model
from service.api.requests import to_request_out
from service.api.shares import Turns
from service.api.versions import Form, render_certificate
from service.bootstrap import Services
from service.db import api_keys, job_events, jobs, models
from service.db.api_keys import Caller
from service.db.tables import Job, JobEvent
from service.domain.disclosure import disclosed
from service.domain.errors import Invalid, NotFound
from service.domain.states import TERMINAL_STAGES, Stage
from service.schemas.base import Listing
from service.schemas.requests import JobDetail, JobOut, JobStep, RequestOut
from service.steps.operator.cancel import cancel_job
from service.steps.operator.retry import retry_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=GuardedRoute)
PING_SECONDS, MAX_STEPS = 15, 200
PROGRESS_EVENTS = ("stage", "done")  # what a key with `submit` alone is sent, with `progress` in between


def to_job_out(job: Job, caller: Caller) -> JobOut:
    """The answer for a job, with the metrics that the caller may see."""
    metrics = {} if _own_requests_only(caller) else _disclosed(job.metrics, job, caller)
    return JobOut(
        id=job.id,
        model=job.model.name,
        stage=job.stage,
        outcome=job.outcome,
        reason=job.reason,
        progress=job.progress,
        epoch=job.epoch,
        attempts=job.attempts,
        losses=job.losses,
        parent=job.parent_version.number,
        version=job.version.number if job.version else None,
        metrics=metrics,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _own_requests_only(caller: Caller) -> UUID | None:
    """The API key whose requests' jobs the caller is restricted to; None: no restriction."""
    return restricted_to(caller, *SEES_ALL_REQUESTS)


def _disclosed(numbers: Mapping[str, object], job: Job, caller: Caller) -> dict[str, object]:
    """The numbers of a job that the caller may see."""
    return disclosed(numbers, jobs.measured_contributors(job), auditor=is_auditor(caller))


def find_job(services: Services, job_id: UUID, caller: Caller) -> Job:
    """A job that the caller may see; another is as if it did not exist."""
    own = _own_requests_only(caller)
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        if job is None or (own is not None and not jobs.has_request(session, job_id, own)):
            raise NotFound("There is no such job.")
    return job


@router.get("")
def listing(
    services: ServicesDep,
    caller: JobReader,
    model: ModelFilter = None,
    stage: Stage | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[JobOut]:
    """Jobs, newest first. A key with the scope `submit` alone sees the jobs of its own requests."""
    with services.db.reading() as session:
        model_id = filtered_model(session, model)
        page = jobs.listing(
            session, cursor, limit, model_id=model_id, stage=stage, api_key_id=_own_requests_only(caller)
        )
    return Listing(items=[to_job_out(job, caller) for job in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}")
def get(job_id: UUID, services: ServicesDep, caller: JobReader) -> JobDetail:
    """One job. Its metrics depend on the caller's scopes.

    With `audit`, all metrics are exact. With `read`, means are coarse, and null if the texts come from fewer than three
    submitters or mostly from one. With `submit` alone, there are no metrics, and no jobs but those of own requests.
    """
    job = find_job(services, job_id, caller)
    kinds = PROGRESS_EVENTS if _own_requests_only(caller) else job_events.STEPS
    with services.db.reading() as session:
        steps = [_to_step(event) for event in job_events.steps(session, job_id, kinds, MAX_STEPS)]
    return JobDetail(**dict(to_job_out(job, caller)), steps=steps)


def _to_step(event: JobEvent) -> JobStep:
    said = {name: event.data.get(name) for name in ("stage", "outcome", "reason")}
    return JobStep.model_validate({"kind": event.kind, "at": event.at, **said})


@router.post("/{job_id}/cancel")
def cancel(job_id: UUID, services: ServicesDep, caller: Admin) -> JobDetail:
    """Stop a job before its result is certified; later this gives a 409. Its open requests fail, and can be retried."""
    cancel_job(services, job_id, caller.id)
    return get(job_id, services, caller)


@router.post("/{job_id}/retry", status_code=202)
def retry(job_id: UUID, services: ServicesDep, caller: Admin) -> list[RequestOut]:
    """Make the failed requests of a job pending again, once an operator has removed the cause."""
    model, requests = retry_job(services, job_id, caller.id)
    return [to_request_out(services, request, model, caller) for request in requests]


@router.get("/{job_id}/history")
def history(job_id: UUID, services: ServicesDep, caller: MetricsReader) -> list[dict[str, object]]:
    """One object per epoch: epoch, el, ma, their thresholds, loss, perplexity, seconds; as exact as in `GET {job_id}`.

    A key with the scope `submit` alone has no access.
    """
    job = find_job(services, job_id, caller)
    with services.db.reading() as session:
        return [_disclosed(epoch, job, caller) for epoch in job_events.history(session, job_id)]


@router.get("/{job_id}/certificate")
def certificate(job_id: UUID, services: ServicesDep, caller: JobReader, form: Form = None) -> Response:
    """The certificate of a job, including a failed one: a DSSE envelope, or its statement as HTML or Markdown."""
    job = find_job(services, job_id, caller)
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
    caller: JobReader,
    last_event_id: Annotated[str | None, Header(max_length=18)] = None,
) -> EventSourceResponse:
    """Live events of the job: `stage`, `thresholds`, `epoch`, `retry`, `done`, with `progress` in between.

    The stream ends with the job, or when the caller's key is revoked. A client that reconnects sends `Last-Event-ID` to
    continue after that event. A key with the scope `submit` alone gets `stage`, `progress` and `done`.
    """
    if last_event_id is not None and not last_event_id.isdecimal():
        raise Invalid("Not the id of an event.", field="Last-Event-ID")
    await run_in_threadpool(find_job, services, job_id, caller)
    return EventSourceResponse(_stream(request, services, job_id, int(last_event_id or 0), caller), ping=PING_SECONDS)


async def _stream(
    request: Request, services: Services, job_id: UUID, last_event: int, caller: Caller
) -> AsyncIterator[ServerSentEvent]:
    """Events after `last_event`, then new events whenever the job changed, for as long as the caller may see them."""
    progress = -1.0
    turns: Turns = request.app.state.stream_turns
    async for _ in request.app.state.listener.subscribe(job_id, caller.expires_at):
        async with turns.turn(str(caller.id)):  # one change wakes every stream of a caller
            current = await run_in_threadpool(_events_after, services, job_id, last_event, caller)
        if current is None:
            return
        job, new_events = current
        for event in new_events:
            last_event = event.id
            if event.kind not in PROGRESS_EVENTS and _own_requests_only(caller):
                continue
            data = _disclosed(event.data, job, caller)
            yield ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
        if job.stage in TERMINAL_STAGES:
            return
        if job.progress != progress:
            progress = job.progress
            data = {"stage": job.stage, "epoch": job.epoch, "progress": progress}
            yield ServerSentEvent(json.dumps(data), event="progress")


def _events_after(
    services: Services, job_id: UUID, last_event: int, caller: Caller
) -> tuple[Job, list[JobEvent]] | None:
    """The job and its events after `last_event`; None if the caller's key was revoked or its token has expired."""
    with services.db.reading() as session:
        if not api_keys.is_valid(session, caller):
            return None
        job = jobs.by_id(session, job_id)
        assert job is not None
        return job, job_events.after(session, job_id, last_event)
