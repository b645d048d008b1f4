"""Requests: the list, the search by case number, one request with its timeline, and what can be done with it."""

from functools import partial
from typing import Annotated, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Response

from service.console.api_client import Api, ApiDep, attempt
from service.console.pages import PageRoute, page, see
from service.console.sign_in import CheckedForm, Visit, Visitor
from service.console.timeline import request_steps
from service.console.words import MODELS, SETTLED

router = APIRouter(prefix="/console/requests", route_class=PageRoute, include_in_schema=False)
PATH = "/v1/deletion-requests"
MAX_MODELS = 200
DATES = ("received_from", "received_before", "due_before")
Choice = Annotated[str, Query(max_length=63)]
Day = Annotated[str, Query(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]
Action = Literal["cancel", "extend", "retry", "resolve", "purge"]


class Filters(dict[str, str]):
    """The filters of the list."""

    __getattr__ = dict.get  # a template reads filters.status


@router.get("")
async def listing(
    visitor: Visitor,
    api: ApiDep,
    status: Choice = "",
    model: Choice = "",
    regulation: Choice = "",
    received_from: Day = "",
    received_before: Day = "",
    due_before: Day = "",
    owed: Choice = "",
    cursor: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Requests, newest first."""
    given = {
        "status": status,
        "model": model,
        "regulation": regulation,
        "received_from": received_from,
        "received_before": received_before,
        "due_before": due_before,
        "owed": owed,
    }
    filters = Filters({name: value for name, value in given.items() if value})
    asked = {name: f"{value}T00:00:00Z" if name in DATES else value for name, value in filters.items()}
    listed = await api.get(PATH, **asked, cursor=cursor, limit=50)
    more = f"/console/requests?{urlencode({**filters, 'cursor': listed['next_cursor']})}"
    caption = "Requests, newest first"
    models = await model_names(api, visitor)
    return page("requests.html", visitor, listing=listed, filters=filters, more=more, caption=caption, models=models)


async def model_names(api: Api, visitor: Visit) -> list[tuple[str, str]]:
    """The names of all models that the visitor may see, as values and words of a choice."""
    if not visitor.may(*MODELS):
        return []
    return [(model["name"], model["name"]) for model in (await api.get("/v1/models", limit=MAX_MODELS))["items"]]


@router.post("/find")
async def find(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Requests with a case number. It comes in a form, because it may name a person."""
    if not form.one("reference"):
        return see("/console/requests")
    listed = await api.get(PATH, reference=form.one("reference"), limit=50)
    if len(listed["items"]) == 1:
        return see(f"/console/requests/{listed['items'][0]['id']}")
    shown = {"listing": listed, "filters": Filters(), "more": "", "models": await model_names(api, visitor)}
    return page("requests.html", visitor, caption="Requests with this case number", **shown)


@router.get("/{request_id}")
async def one(request_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """One request."""
    return await _show(visitor, api, request_id)


@router.post("/{request_id}/{action}")
async def act(request_id: UUID, action: Action, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Do what a button says."""
    path, asked = f"{PATH}/{request_id}", form.given("reason")
    if action == "cancel":
        call = api.call("DELETE", path, params=asked)
    elif action == "retry":
        call = api.call("POST", f"{path}/retry", params=asked)
    else:
        call = api.post(f"{path}/{action}", asked or None)
    return await attempt(call, partial(_show, visitor, api, request_id), f"/console/requests/{request_id}")


async def _show(
    visitor: Visit, api: Api, request_id: UUID, messages: list[str] | None = None, status: int = 200
) -> Response:
    """The page of a request."""
    request = await api.get(f"{PATH}/{request_id}")
    job = await api.get(f"/v1/jobs/{request['job_id']}") if request["job_id"] else None
    ended = request["status"] in (*SETTLED, "failed")
    return page(
        "request.html",
        visitor,
        status,
        request=request,
        timeline=request_steps(request, job),
        messages=messages,
        is_open=not ended,
        may_purge=ended and visitor.may() and not request["purged"],
    )
