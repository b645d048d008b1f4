"""What endpoints ask for: the wired parts, and the caller with a scope."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.changes import REMEMBER_SECONDS, Changes
from service.app import Services
from service.db import keys
from service.db.keys import Caller
from service.domain.errors import Forbidden, Unauthenticated

bearer = HTTPBearer(auto_error=False, description="An API key, or an OAuth 2 access token")


async def services_of(request: Request) -> Services:
    """The application's wired parts."""
    found: Services = request.app.state.services
    return found


Parts = Annotated[Services, Depends(services_of)]


async def caller(
    request: Request, parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> Caller:
    """The API key of the request; the database is asked every few seconds, and once one was revoked.

    Raises:
        Unauthenticated: No key, an unknown one or a revoked one.
        TooMany: The key made more requests than it may.
    """
    if credentials is None:
        raise Unauthenticated("Send an API key: Authorization: Bearer KEY.")
    changes: Changes = request.app.state.changes
    token, tokens = credentials.credentials, request.app.state.tokens
    key_hash = keys.hash_key(token)
    found = changes.caller(key_hash)
    if found is None:
        asked = time.monotonic()
        lasting = float("inf")
        if tokens.concerns(token):  # few at once: an issuer that does not answer keeps API keys not waiting
            found, lasting = await to_thread.run_sync(tokens.caller, token, limiter=tokens.limiter)
        else:
            found = await run_in_threadpool(_find, parts, key_hash)
        if found is None:
            raise Unauthenticated("The API key is unknown or revoked.")
        if lasting > REMEMBER_SECONDS:
            changes.remember(key_hash, found, asked)
    request.app.state.rates.count(str(found.id), request.url.path)
    return found


def _find(parts: Services, key_hash: bytes) -> Caller | None:
    with parts.db.reading() as session:
        return keys.find(session, key_hash)


def with_scope(*scopes: str) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: the caller, who holds one of `scopes` or `admin`."""

    async def check(key: Annotated[Caller, Depends(caller)]) -> Caller:
        if not {*scopes, "admin"} & set(key.scopes):
            raise Forbidden(f"This needs the scope {' or '.join(scopes)}.")
        return key

    return check


def whose(key: Caller, *seeing: str) -> UUID | None:
    """Whose requests alone a key may see or change: its own, unless it holds `admin` or one of these scopes."""
    return None if {*seeing, "admin"} & set(key.scopes) else key.id


SEEING = ("read", "approve", "audit")  # everybody's requests; a key with `submit` alone sees its own
Submitter = Annotated[Caller, Depends(with_scope("submit"))]
Reader = Annotated[Caller, Depends(with_scope("read", "submit"))]
Downloader = Annotated[Caller, Depends(with_scope("download"))]
VersionReader = Annotated[Caller, Depends(with_scope("read", "download", "submit"))]
Auditor = Annotated[Caller, Depends(with_scope("audit", "read", "download", "submit"))]
DownloadAuditor = Annotated[Caller, Depends(with_scope("audit"))]
Approver = Annotated[Caller, Depends(with_scope("approve"))]
Admin = Annotated[Caller, Depends(with_scope("admin"))]
