"""Decisions: requests that wait for approval, and the texts that were found for each."""

from functools import partial
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response

from service.console.api_client import Api, ApiDep, attempt
from service.console.pages import PageRoute, page, see
from service.console.requests import PATH
from service.console.sign_in import CheckedForm, Visit, Visitor
from service.domain.errors import Invalid, NotFound

router = APIRouter(prefix="/console/decisions", route_class=PageRoute, include_in_schema=False)
SHOWN = 200  # matches on a page


@router.get("")
async def listing(visitor: Visitor, api: ApiDep, cursor: str = "") -> Response:
    """The requests that wait for a decision."""
    listed = await api.get(PATH, waits_for="approval", cursor=cursor)
    return page("decisions.html", visitor, listing=listed)


@router.get("/{request_id}")
async def one(request_id: UUID, visitor: Visitor, api: ApiDep, after: int = -1) -> Response:
    """The matches of a request, and the form to decide on them."""
    return await _show(visitor, api, request_id, after=after)


async def _show(
    visitor: Visit, api: Api, request_id: UUID, messages: list[str] | None = None, status: int = 200, *, after: int = -1
) -> Response:
    request = await api.get(f"{PATH}/{request_id}")
    if request["waits_for"] != "approval":
        return see(f"/console/requests/{request_id}")
    matches: list[dict[str, Any]] = await api.get(f"{PATH}/{request_id}/matches", after=after, limit=SHOWN)
    last = matches[-1]["match"] if len(matches) >= SHOWN else None
    shown = {"request": request, "matches": matches, "last": last, "messages": messages, "is_first": after < 0}
    return page("decision.html", visitor, status, **shown)


def _numbers(values: list[str]) -> list[int]:
    """The numbers of the chosen matches.

    Raises:
        Invalid: One is no number.
    """
    try:
        return [int(value) for value in values]
    except ValueError:
        raise Invalid("Not the number of a match.", field="match") from None


@router.post("/{request_id}")
async def decide(request_id: UUID, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Approve all that was found, or what was chosen, or reject the request."""
    path, decision = f"{PATH}/{request_id}", form.one("decision")
    if decision == "reject":
        call = api.post(f"{path}/reject", form.given("reason"))
    elif decision == "approve":
        chosen = {"matches": _numbers(form.get("match", []))}
        call = api.post(f"{path}/approve", {**chosen, **form.given("reason")})
    elif decision == "approve_all":
        call = api.post(f"{path}/approve", form.given("reason"))
    else:
        raise NotFound("There is no such decision.")
    return await attempt(call, partial(_show, visitor, api, request_id), f"/console/requests/{request_id}")
