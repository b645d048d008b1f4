"""What endpoints ask for: the service's parts, and the caller with a scope."""

import time
from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param

from service.api.listener import REMEMBER_SECONDS, Listener
from service.bootstrap import Services
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.errors import Forbidden, Unauthenticated


def services_from(request: Request) -> Services:
    """The application's service's parts."""
    found: Services = request.app.state.services
    return found


async def _services(request: Request) -> Services:
    return services_from(request)


ServicesDep = Annotated[Services, Depends(_services)]


async def caller(request: Request) -> Caller:
    """The API key of the request; the database is asked every few seconds, and once one was revoked.

    Raises:
        Unauthenticated: No key, an unknown one or a revoked one.
        TooMany: The key made more requests than it may.
    """
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Send an API key: Authorization: Bearer KEY.")
    listener: Listener = request.app.state.listener
    tokens = request.app.state.tokens
    key_hash = api_keys.hash_key(token)
    found = listener.caller(key_hash)
    if found is None:
        asked = time.monotonic()
        lasting = float("inf")
        if tokens.concerns(token):  # few at once: an issuer that does not answer keeps API keys not waiting
            found, lasting = await to_thread.run_sync(tokens.caller, token, limiter=tokens.limiter)
        else:
            found = await run_in_threadpool(_find, services_from(request), key_hash)
        if found is None:
            raise Unauthenticated("The API key is unknown or revoked.")
        if lasting > REMEMBER_SECONDS:
            listener.remember(key_hash, found, asked)
    request.app.state.rates.count(str(found.id), request.scope["path"])
    return found


def _find(services: Services, key_hash: bytes) -> Caller | None:
    with services.db.reading() as session:
        return api_keys.find_caller(session, key_hash)


class WithScope(SecurityBase):
    """A dependency, and one only, for each costs a tenth of a millisecond: the caller, who holds a scope or `admin`."""

    scheme_name = "HTTPBearer"
    model = HTTPBearer(description="An API key, or an OAuth 2 access token")

    def __init__(self, *scopes: str) -> None:
        """Ask for one of these scopes."""
        self._scopes = scopes

    async def __call__(self, request: Request) -> Caller:
        """The caller.

        Raises:
            Forbidden: Without the scope. And as `caller`.
        """
        key = await caller(request)
        if not {*self._scopes, "admin"} & set(key.scopes):
            raise Forbidden(f"This needs the scope {' or '.join(self._scopes)}.")
        return key


def restricted_to(key: Caller, *seeing: str) -> UUID | None:
    """Whose requests alone a key may see or change: its own, unless it holds `admin` or one of these scopes."""
    return None if {*seeing, "admin"} & set(key.scopes) else key.id


def is_auditor(key: Caller) -> bool:
    """Whether a key may see exact numbers about few people's texts."""
    return bool({"audit", "admin"} & set(key.scopes))


SEES_ALL_REQUESTS = ("read", "approve", "audit")  # everybody's requests; a key with `submit` alone sees its own
Submitter = Annotated[Caller, Depends(WithScope("submit"))]
Reader = Annotated[Caller, Depends(WithScope("read", "submit"))]
Downloader = Annotated[Caller, Depends(WithScope("download"))]
VersionReader = Annotated[Caller, Depends(WithScope("read", "download", "submit"))]
Auditor = Annotated[Caller, Depends(WithScope("audit", "read", "download", "submit"))]
DownloadAuditor = Annotated[Caller, Depends(WithScope("audit"))]
Approver = Annotated[Caller, Depends(WithScope("approve"))]
Admin = Annotated[Caller, Depends(WithScope("admin"))]
