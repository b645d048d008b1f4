"""The way in and out: `/`, the sign-in form, styles and scripts."""

from datetime import timedelta
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from service.api.deps import ServicesDep
from service.api.limits import admission_from, peer
from service.bootstrap import Services
from service.console.pages import PageRoute, see, sign_in_form, static_file
from service.console.sign_in import (
    COOKIE,
    FIRST_PAGE,
    CheckedForm,
    Form,
    Visitor,
    check_same_site,
    own_path,
    read_form,
    set_session,
)
from service.db import api_keys, console_sessions
from service.domain.errors import Forbidden, NotFound

router = APIRouter(route_class=PageRoute, include_in_schema=False)
WRONG_KEY = "This API key is unknown or revoked."


@router.get("/")
async def root() -> Response:
    """The console is what a browser looks for here."""
    return see(FIRST_PAGE)


@router.get("/console/static/{digest}/{name}")
async def static(digest: str, name: str) -> Response:
    """A style or script."""
    return static_file(digest, name)


@router.get("/console/sign-in")
async def sign_in_page(request: Request, after: str = FIRST_PAGE) -> Response:
    """The form."""
    return sign_in_form(request, own_path(after))


@router.post("/console/sign-in")
async def sign_in(request: Request, form: Annotated[Form, Depends(read_form)], services: ServicesDep) -> Response:
    """Begin a session of an API key."""
    check_same_site(request)
    if not services.settings.keys_sign_in:
        raise Forbidden("Nobody signs in with an API key here.")
    after, admission = own_path(form.one("after")), admission_from(request)
    async with admission.turn(peer(request)):
        cookie = await to_thread.run_sync(_begin, services, form.one("api_key"), limiter=admission.key_lookups)
    if cookie is None:
        return sign_in_form(request, after, WRONG_KEY, 401)
    answer = see(after)
    set_session(request, answer, cookie)
    return answer


def _begin(services: Services, key: str) -> str | None:
    """The cookie of a new session; None if there is no such key."""
    with services.db.transaction() as session:
        caller = api_keys.find_caller(session, api_keys.hash_key(key))
        lifetime = timedelta(seconds=services.settings.console_seconds)
        return console_sessions.begin(session, caller, lifetime) if caller else None


@router.post("/console/sign-out")
async def sign_out(request: Request, services: ServicesDep, _: Visitor, __: CheckedForm) -> Response:
    """End the session."""
    await to_thread.run_sync(_end, services, request.cookies[COOKIE])
    answer = see("/console/sign-in")
    answer.delete_cookie(COOKIE, path=FIRST_PAGE)
    return answer


def _end(services: Services, cookie: str) -> None:
    with services.db.transaction() as session:
        console_sessions.end(session, cookie)


@router.get("/console/{rest:path}")
async def missing(rest: str, _: Visitor) -> Response:  # it takes what no other page does
    """Say that there is no such page."""
    raise NotFound("There is no such page.")
