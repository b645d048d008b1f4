"""Pages: the templates, their headers, and the route of every page."""

import hashlib
import json
import mimetypes
from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import Any, cast
from urllib.parse import quote

from anyio import CapacityLimiter
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from service.api.deps import services_from
from service.api.errors import to_answer
from service.api.guard import GuardedRoute, Handler
from service.api.limits import Admission
from service.console import words
from service.console.sign_in import COOKIE, FIRST_PAGE, SignInNeeded, Visit
from service.db.session import DATABASE_AWAY
from service.domain.errors import ServiceError, StorageAway
from service.evidence.log_memory import LogDamaged

CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SHOWN_ERRORS = (ServiceError, RequestValidationError, HTTPException, *DATABASE_AWAY, LogDamaged, StorageAway, DataError)
HEAVY = CapacityLimiter(2)  # threads for what takes long: PDFs, and the doctor
STATIC = {
    file.name: file.read_bytes()
    for file in (resources.files("service.console") / "static").iterdir()
    if file.name.endswith((".css", ".js", ".svg"))
}
DIGESTS = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in STATIC.items()}


def static_path(name: str) -> str:
    """The path of a style or script. It changes with the content, so browsers may keep it."""
    return f"/console/static/{DIGESTS[name]}/{name}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    environment.globals |= {"static": static_path, "words": words}
    return environment


ENVIRONMENT = _environment()


def page(template: str, visit: Visit | None, status: int = 200, **values: Any) -> Response:
    """A page for a visitor."""
    return HTMLResponse(fragment(template, visit, **values), status, HEADERS)


def fragment(template: str, visit: Visit | None, **values: Any) -> str:
    """The text of a page, or of a part of one."""
    return ENVIRONMENT.get_template(template).render(visit=visit, **values)


def see(path: str) -> Response:
    """Send the browser to another page, after a form."""
    return RedirectResponse(path, 303, {"Cache-Control": "no-store"})


def static_file(digest: str, name: str) -> Response:
    """A style or script, or a 404."""
    if DIGESTS.get(name) != digest:
        raise HTTPException(404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(STATIC[name], 200, headers, mimetypes.guess_type(name)[0])


class PageRoute(GuardedRoute):
    """The route of a page. Its errors are pages, too.

    It holds a place, and no turn: its calls of the API take turns, and would wait for each other.
    """

    def admit(self, admission: Admission, holder: str) -> AbstractAsyncContextManager[None]:
        """Admit a request of a holder."""
        return admission.place(holder)

    def get_route_handler(self) -> Handler:
        """Wrap the guarded endpoint."""
        guarded = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await guarded(request)
            except SignInNeeded:
                return _ask_to_sign_in(request)
            except SHOWN_ERRORS as error:
                return error_page(request, cast(Exception, error))

        return handle


def _ask_to_sign_in(request: Request) -> Response:
    """The form, in place of the first page; other pages lead to it, and it leads back."""
    if request.url.path == FIRST_PAGE:
        answer = sign_in_form(request, FIRST_PAGE)
    else:
        answer = see(f"{FIRST_PAGE}/sign-in?after={quote(_here(request), safe='/')}")
    if COOKIE in request.cookies:  # a link from another site brings none, and must not sign anybody out
        answer.delete_cookie(COOKIE, path=FIRST_PAGE)
    return answer


def _here(request: Request) -> str:
    """The page that was asked for, with its query; what a form sent is lost."""
    if request.method != "GET":
        return FIRST_PAGE
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


def sign_in_form(request: Request, after: str, message: str = "", status: int = 200) -> Response:
    """The form that asks who somebody is, in the ways that the settings allow."""
    settings = services_from(request).settings
    ways = {"has_oidc": bool(settings.oidc_issuer), "has_keys": settings.keys_sign_in}
    return page("sign_in.html", None, status, after=after, message=message, **ways)


def error_page(request: Request, error: Exception) -> Response:
    """The page that says what is wrong."""
    problem = getattr(error, "problem", None) or json.loads(bytes(to_answer(request, error).body))
    visit = request.scope.get("unlearnd.visit")
    return page("error.html", visit, int(problem["status"]), problem=problem)
