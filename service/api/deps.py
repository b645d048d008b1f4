"""What endpoints ask for: the wired parts, and the caller with a scope."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.app import Services
from service.db import keys
from service.db.tables import ApiKey
from service.domain.errors import Forbidden, Unauthenticated

bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer unl_...`")


async def services_of(request: Request) -> Services:
    """The application's wired parts."""
    found: Services = request.app.state.services
    return found


Parts = Annotated[Services, Depends(services_of)]


def caller(parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]) -> ApiKey:
    """The API key of the request.

    Raises:
        Unauthenticated: No key, an unknown one or a revoked one.
    """
    if credentials is None:
        raise Unauthenticated("Send an API key: Authorization: Bearer KEY.")
    with parts.db.reading() as session:
        key = keys.find(session, credentials.credentials)
    if key is None:
        raise Unauthenticated("The API key is unknown or revoked.")
    return key


def with_scope(*scopes: str) -> Callable[[ApiKey], Awaitable[ApiKey]]:
    """A dependency: the caller, who holds one of `scopes` or `admin`."""

    async def check(key: Annotated[ApiKey, Depends(caller)]) -> ApiKey:
        if not {*scopes, "admin"} & set(key.scopes):
            raise Forbidden(f"This needs the scope {' or '.join(scopes)}.")
        return key

    return check


Submitter = Annotated[ApiKey, Depends(with_scope("submit"))]
Reader = Annotated[ApiKey, Depends(with_scope("read", "submit"))]
Downloader = Annotated[ApiKey, Depends(with_scope("download"))]
VersionReader = Annotated[ApiKey, Depends(with_scope("read", "download", "submit"))]
Admin = Annotated[ApiKey, Depends(with_scope("admin"))]
