"""Settings: API keys, their sessions, and what auditors must trust."""

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Response

from service.api.deps import ServicesDep
from service.bootstrap import Services
from service.console.api_client import Api, ApiDep, Refused, attempt
from service.console.pages import PageRoute, page, see
from service.console.sign_in import CheckedForm, Visit, Visitor
from service.db import console_sessions
from service.domain.errors import Forbidden

router = APIRouter(prefix="/console/settings", route_class=PageRoute, include_in_schema=False)
PATH = "/v1/api-keys"


@router.get("")
async def settings(visitor: Visitor, api: ApiDep) -> Response:
    """The page."""
    return await _show(visitor, api)


async def _show(
    visitor: Visit,
    api: Api,
    messages: list[str] | None = None,
    status: int = 200,
    *,
    made: Any = None,
) -> Response:
    keys = (await api.get(PATH))["items"] if visitor.may() else []
    trust = await api.get("/v1/log/trust") if visitor.may("audit", "read") else None
    checkpoint = ""
    if visitor.may("audit", "read"):
        try:
            checkpoint = await api.text("/v1/log/checkpoint")
        except Refused:
            checkpoint = ""  # nothing has been signed yet
    rows = await api.get("/v1/settings") if visitor.may() else []
    ends = datetime.fromtimestamp(visitor.caller.expires_at).astimezone()
    shown = {"keys": keys, "trust": trust, "checkpoint": checkpoint, "made": made, "ends": ends, "rows": rows}
    return page("settings.html", visitor, status, messages=messages, **shown)


@router.post("/keys")
async def create(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Make a key. This page alone shows it."""
    try:
        made = await api.post(PATH, {"name": form.one("name"), "scopes": form.get("scope", [])})
    except Refused as refused:
        return await _show(visitor, api, refused.messages, refused.status)
    return await _show(visitor, api, made=made)


@router.post("/keys/{key_id}/revoke")
async def revoke(key_id: UUID, visitor: Visitor, api: ApiDep, _: CheckedForm) -> Response:
    """Revoke a key for good. Its sessions end with it."""
    return await attempt(api.call("DELETE", f"{PATH}/{key_id}"), partial(_show, visitor, api), "/console/settings")


@router.post("/keys/{key_id}/sign-out")
async def sign_out_all(key_id: UUID, visitor: Visitor, services: ServicesDep, _: CheckedForm) -> Response:
    """End all sessions of a key: one's own, or anybody's with `admin`."""
    if key_id != visitor.caller.id and not visitor.may():
        raise Forbidden("This needs the scope admin.")
    await to_thread.run_sync(_end_all, services, key_id)
    return see("/console/settings")


def _end_all(services: Services, key_id: UUID) -> None:
    with services.db.transaction() as session:
        console_sessions.end_all(session, key_id)
