"""Who is signed in, by a cookie; forms, which only the pages of the same session can send."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Annotated
from urllib.parse import parse_qsl

from anyio import to_thread
from fastapi import Depends, Request, Response

from service.api.deps import RawBody, WithScope, service_url, services_from
from service.api.limits import admission_from, peer
from service.bootstrap import Services
from service.db import console_sessions
from service.db.api_keys import Caller
from service.db.console_sessions import SignedIn
from service.domain.errors import Forbidden, Invalid, ServiceError

COOKIE, FIRST_PAGE = "unlearnd_session", "/console"
TOKEN = "token"  # noqa: S105  # the name of the field with the form's token
MAX_FIELDS = 1000


class SignInNeeded(ServiceError):
    """Nobody is signed in, or the session has ended."""

    status, code, title = 401, "sign_in_needed", "Sign in"


@dataclass(frozen=True, slots=True)
class Visit:
    """Whoever is signed in.

    Attributes:
        caller: The API key and scopes in whose name the console acts.
        name: The name of the API key.
        token: What a form of this session must hold.
    """

    caller: Caller
    name: str
    token: str

    def may(self, *scopes: str) -> bool:
        """Whether one of these scopes is there."""
        return bool({*scopes, "admin"} & set(self.caller.scopes))


class WithSession(WithScope):
    """A dependency on somebody who is signed in."""

    async def identify(self, request: Request) -> Caller:
        """The caller of the session.

        Raises:
            SignInNeeded: There is no session.
            Forbidden: Another site's page sent this.
        """
        check_same_site(request)
        cookie = request.cookies.get(COOKIE, "")
        signed_in = await _look_up(request, cookie) if cookie else None
        if signed_in is None:
            raise SignInNeeded("Sign in to go on.")
        request.state.api_key_id = signed_in.caller.id  # for the access log
        request.scope["unlearnd.visit"] = Visit(signed_in.caller, signed_in.name, form_token(cookie))
        return signed_in.caller


async def _look_up(request: Request, cookie: str) -> SignedIn | None:
    """Who has a cookie. Whoever sends it may be anybody, so it takes what unknown API keys take."""
    admission = admission_from(request)
    async with admission.turn(peer(request)):
        return await to_thread.run_sync(find_session, services_from(request), cookie, limiter=admission.key_lookups)


def find_session(services: Services, cookie: str) -> SignedIn | None:
    """Who has a cookie; None if the session has ended."""
    with services.db.reading() as session:
        return console_sessions.find(session, cookie)


def set_session(request: Request, answer: Response, cookie: str) -> None:
    """Give a browser the cookie of its session. No script sees it, and no other site's page sends it."""
    secure = service_url(request).startswith("https://")
    seconds = int(services_from(request).settings.console_seconds)
    answer.set_cookie(COOKIE, cookie, seconds, path=FIRST_PAGE, secure=secure, httponly=True, samesite="strict")


def own_path(path: str) -> str:
    """A path of the console, or its first page: nobody is sent elsewhere."""
    return path if path == FIRST_PAGE or path.startswith(f"{FIRST_PAGE}/") else FIRST_PAGE


def check_same_site(request: Request) -> None:
    """Refuse what a browser sends for a page of another site.

    Raises:
        Forbidden: It is a POST from there. A link from there is followed: the cookie is not sent with it.
    """
    if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("This form was sent from another site; nothing was changed.")


def form_token(cookie: str) -> str:
    """The token of a session's forms. Who knows it knows nothing of the cookie."""
    return hmac.new(cookie.encode(), b"form", hashlib.sha256).hexdigest()


async def _visit(request: Request, _: Annotated[Caller, Depends(WithSession())]) -> Visit:
    visit: Visit = request.scope["unlearnd.visit"]
    return visit


Visitor = Annotated[Visit, Depends(_visit)]


class Form(dict[str, list[str]]):
    """The fields of a form."""

    def one(self, name: str) -> str:
        """The value of a field, without white space around it; empty if it is missing."""
        return self.get(name, [""])[0].strip()

    def given(self, *names: str) -> dict[str, str]:
        """Those of these fields that are not empty."""
        return {name: self.one(name) for name in names if self.one(name)}


def parse_form(content_type: str, raw: bytes) -> Form:
    """The fields and the text files of a form, read in memory: a spooled file could hold personal data.

    Browsers send each end of a line as CRLF; here it is LF, as in training data.

    Raises:
        Invalid: It is no form in UTF-8, or has too many fields.
    """
    try:
        pairs = _multipart(content_type, raw) if content_type.startswith("multipart/") else _urlencoded(raw)
    except (ValueError, AttributeError, TypeError):
        raise Invalid(f"It is not in UTF-8, or has more than {MAX_FIELDS} fields.", field="form") from None
    form = Form()
    for name, value in pairs:
        form.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return form


def _urlencoded(raw: bytes) -> list[tuple[str, str]]:
    return parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)


def _multipart(content_type: str, raw: bytes) -> list[tuple[str, str]]:
    """The parts of a multipart form (RFC 7578).

    Raises:
        ValueError: There are too many.
    """
    boundary = re.search(r'boundary="?([^";,]+)', content_type)
    if boundary is None or raw.count(b"--" + boundary[1].encode("latin-1")) > MAX_FIELDS:
        raise ValueError("too many parts")
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + raw
    )
    return [
        (str(part.get_param("name", header="content-disposition")), bytes(part.get_payload(decode=True)).decode())
        for part in message.iter_parts()
    ]


async def read_form(request: Request, raw: RawBody) -> Form:
    """The fields of a form, parsed in a thread: the event loop answers others meanwhile."""
    content_type = request.headers.get("content-type", "")
    return await to_thread.run_sync(parse_form, content_type, raw, limiter=admission_from(request).parsers)


async def _checked_form(form: Annotated[Form, Depends(read_form)], visitor: Visitor) -> Form:
    if not hmac.compare_digest(form.one(TOKEN).encode(), visitor.token.encode()):
        raise Forbidden("This form is from another session; nothing was changed. Go back, reload, and try again.")
    return form


CheckedForm = Annotated[Form, Depends(_checked_form)]
