"""The way in and out: `/`, the sign-in form, styles and scripts."""

from datetime import timedelta

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from service.api.deps import RawBody, ServicesDep, service_url
from service.api.limits import Admission, peer
from service.bootstrap import Services
from service.console.pages import FIRST_PAGE, PageRoute, page, see, static_file
from service.console.sign_in import COOKIE, CheckedForm, Visitor, check_same_site, parse_form
from service.db import api_keys, console_sessions
from service.domain.errors import NotFound

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
async def sign_in_page(after: str = FIRST_PAGE) -> Response:
    """The form."""
    return page("sign_in.html", None, after=_own(after), message="")


def _own(path: str) -> str:
    """A path of the console, or its first page: nobody is sent elsewhere."""
    return path if path == FIRST_PAGE or path.startswith(f"{FIRST_PAGE}/") else FIRST_PAGE


@router.post("/console/sign-in")
async def sign_in(request: Request, raw: RawBody, services: ServicesDep) -> Response:
    """Begin a session of an API key."""
    check_same_site(request)
    form = parse_form(request.headers.get("content-type", ""), raw)
    after, admission = _own(form.one("after")), _admission(request)
    async with admission.turn(peer(request)):
        cookie = await to_thread.run_sync(_begin, services, form.one("api_key"), limiter=admission.key_lookups)
    if cookie is None:
        return page("sign_in.html", None, 401, after=after, message=WRONG_KEY)
    answer = see(after)
    secure = service_url(request).startswith("https://")
    seconds = int(services.settings.console_seconds)
    answer.set_cookie(COOKIE, cookie, seconds, path=FIRST_PAGE, secure=secure, httponly=True, samesite="strict")
    return answer


def _admission(request: Request) -> Admission:
    admission: Admission = request.app.state.admission
    return admission


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
