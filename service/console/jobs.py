"""Jobs: the list, one job while it runs, and what can be done with it."""

import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.api.deps import ServicesDep
from service.api.jobs import PING_SECONDS, find_job
from service.bootstrap import Services
from service.console.api_client import Api, ApiDep, Refused, attempt
from service.console.live import LiveParts
from service.console.pages import PageRoute, fragment, page
from service.console.requests import PATH as REQUESTS_PATH
from service.console.requests import Choice, model_names
from service.console.sign_in import COOKIE, CheckedForm, Visit, Visitor, find_session
from service.console.timeline import job_steps
from service.console.training import beside_controls, perplexity, scores
from service.console.words import ALL, REQUESTS
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.states import TERMINAL_STAGES

router = APIRouter(prefix="/console/jobs", route_class=PageRoute, include_in_schema=False)
PATH, SHOWN = "/v1/jobs", 200
END = "<!-- the job has ended -->"
SESSION_SECONDS = 10  # how often a stream looks whether its session goes on
LOOKS = CapacityLimiter(1)  # one stream after the other: many are woken by the same change


@router.get("")
async def listing(
    visitor: Visitor,
    api: ApiDep,
    model: Choice = "",
    stage: Choice = "",
    cursor: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Jobs, newest first."""
    listed = await api.get(PATH, model=model, stage=stage, cursor=cursor)
    models = await model_names(api, visitor)
    return page("jobs.html", visitor, listing=listed, models=models, model=model, stage=stage)


@router.get("/{job_id}")
async def one(job_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """One job."""
    return await _show(visitor, api, job_id)


async def _show(
    visitor: Visit, api: Api, job_id: UUID, messages: list[str] | None = None, status: int = 200
) -> Response:
    return page("job.html", visitor, status, messages=messages, **await _state(visitor, api, job_id))


async def _state(visitor: Visit, api: Api, job_id: UUID) -> dict[str, Any]:
    """A job, its requests, its epochs and its plots."""
    job = await api.get(f"{PATH}/{job_id}")
    requests = await api.get(REQUESTS_PATH, job=job_id, limit=SHOWN) if visitor.may(*REQUESTS) else {"items": []}
    history = await api.get(f"{PATH}/{job_id}/history") if visitor.may(*ALL) else []
    attacks = job["metrics"].get("attacks") or []
    return {
        "job": job,
        "steps": job_steps(job),
        "requests": requests["items"],
        "history": history,
        "attacks": attacks,
        "has_ended": job["stage"] in TERMINAL_STAGES,
        "scores": scores(history),
        "perplexity": perplexity(history, job["metrics"].get("utility")),
        "beside": beside_controls(attacks),
    }


@router.post("/{job_id}/{action}")
async def act(
    job_id: UUID, action: Literal["cancel", "retry"], visitor: Visitor, api: ApiDep, _: CheckedForm
) -> Response:
    """Cancel a job, or retry its failed requests."""
    call = api.post(f"{PATH}/{job_id}/{action}")
    return await attempt(call, partial(_show, visitor, api, job_id), f"/console/jobs/{job_id}")


@router.get("/{job_id}/events")
async def events(job_id: UUID, request: Request, visitor: Visitor, services: ServicesDep, api: ApiDep) -> Response:
    """`changed`, with the part of the page that changes, whenever the job has; `ended` once it has ended.

    The stream ends with the session, too.
    """
    await to_thread.run_sync(find_job, services, job_id, visitor.caller)
    stream = _changes(request, services, visitor, api, job_id)
    return EventSourceResponse(stream, ping=PING_SECONDS, headers={"Cache-Control": "no-store"})


async def _changes(
    request: Request, services: Services, visitor: Visit, api: Api, job_id: UUID
) -> AsyncIterator[ServerSentEvent]:
    """The events of a viewer. All of a key with the same scopes see the same, so it is made once for all of them."""
    parts: LiveParts = request.app.state.live_parts
    cookie = request.cookies.get(COOKIE, "")
    looked = time.monotonic() - secrets.randbelow(SESSION_SECONDS)  # viewers who came together look at other times
    key, seen = (job_id, visitor.caller.id, *visitor.caller.scopes), ""

    async def make() -> str | None:
        if not await to_thread.run_sync(_is_valid, services, visitor.caller):
            return END  # the key was revoked: nobody of it sees more
        try:
            state = await _state(visitor, api, job_id)
        except Refused:
            return None  # too much to do; the next change, or the next look, shows more
        return fragment("job_live.html", visitor, **state) + (END if state["has_ended"] else "")

    async for _ in request.app.state.listener.subscribe(job_id, visitor.caller.expires_at):
        if time.monotonic() - looked > SESSION_SECONDS:
            looked = time.monotonic()
            if await to_thread.run_sync(find_session, services, cookie, limiter=LOOKS) is None:
                yield ServerSentEvent("", event="ended")
                return
        part = await parts.next(key, make)
        if part not in (None, END, seen):
            yield ServerSentEvent(part, event="changed")
        seen = part or seen
        if seen.endswith(END):
            yield ServerSentEvent("", event="ended")
            return


def _is_valid(services: Services, caller: Caller) -> bool:
    """Whether a key was not revoked."""
    with services.db.reading() as session:
        return api_keys.is_valid(session, caller)
