"""Dependencies of endpoints: the services, and the caller with the needed scope."""

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
from service.api.oauth import AccessTokens
from service.api.rates import RateLimiter
from service.bootstrap import Services
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.errors import Forbidden, Unauthenticated


def services_from(request: Request) -> Services:
    """The application's services."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_from(request)


ServicesDep = Annotated[Services, Depends(_services)]


async def authenticate(request: Request) -> Caller:
    """The caller, by the API key or access token of the request. Each request counts against its rate limit.

    A caller is remembered for a few seconds, so that the database is not asked each time. A revocation clears that
    memory.

    Raises:
        Unauthenticated: There is no key or token, or it is unknown, revoked or not valid.
        Unavailable: The keys that verify access tokens cannot be fetched now.
        RateLimited: The key made too many requests.
    """
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Send an API key: Authorization: Bearer KEY.")
    listener: Listener = request.app.state.listener
    access_tokens: AccessTokens = request.app.state.access_tokens
    rate_limiter: RateLimiter = request.app.state.rate_limiter
    key_hash = api_keys.hash_key(token)
    caller = listener.remembered_caller(key_hash)
    if caller is None:
        asked_at = time.monotonic()
        valid_seconds = float("inf")
        if access_tokens.is_access_token(token):
            # A limiter of few threads: an issuer that does not answer must not delay API keys.
            caller, valid_seconds = await to_thread.run_sync(access_tokens.caller, token, limiter=access_tokens.limiter)
        else:
            caller = await run_in_threadpool(_find_caller, services_from(request), key_hash)
        if caller is None:
            raise Unauthenticated("The API key is unknown or revoked.")
        if valid_seconds > REMEMBER_SECONDS:
            listener.remember_caller(key_hash, caller, asked_at)
    request.state.api_key_id = caller.id  # for the access log
    rate_limiter.count(str(caller.id), request.scope["path"])
    return caller


def _find_caller(services: Services, key_hash: bytes) -> Caller | None:
    with services.db.reading() as session:
        return api_keys.find_caller(session, key_hash)


class WithScope(SecurityBase):
    """A dependency on a caller who holds one of some scopes, or `admin`.

    Authentication and scope are one dependency, because each dependency costs a tenth of a millisecond.
    """

    scheme_name = "HTTPBearer"
    model = HTTPBearer(description="An API key, or an OAuth 2 access token")

    def __init__(self, *scopes: str) -> None:
        """Require one of these scopes."""
        self._scopes = scopes

    async def __call__(self, request: Request) -> Caller:
        """The caller.

        Raises:
            Forbidden: The caller has none of the scopes. `authenticate` raises further errors.
        """
        caller = await authenticate(request)
        if not {*self._scopes, "admin"} & set(caller.scopes):
            raise Forbidden(f"This needs the scope {' or '.join(self._scopes)}.")
        return caller


def restricted_to(caller: Caller, *all_request_scopes: str) -> UUID | None:
    """The API key to whose requests a caller is restricted: its own.

    None, no restriction, if the caller holds `admin` or one of `all_request_scopes`.
    """
    return None if {*all_request_scopes, "admin"} & set(caller.scopes) else caller.id


def is_auditor(caller: Caller) -> bool:
    """Whether a caller may see exact numbers about few submitters' texts."""
    return bool({"audit", "admin"} & set(caller.scopes))


SEES_ALL_REQUESTS = ("read", "approve", "audit")  # a caller with `submit` alone sees its own requests
Submitter = Annotated[Caller, Depends(WithScope("submit"))]
Reader = Annotated[Caller, Depends(WithScope("read", "submit"))]
Downloader = Annotated[Caller, Depends(WithScope("download"))]
VersionReader = Annotated[Caller, Depends(WithScope("read", "download", "submit"))]
JobReader = Annotated[Caller, Depends(WithScope(*SEES_ALL_REQUESTS, "submit"))]
MetricsReader = Annotated[Caller, Depends(WithScope(*SEES_ALL_REQUESTS))]
Auditor = Annotated[Caller, Depends(WithScope("audit", "read", "download", "submit"))]
LogReader = Annotated[Caller, Depends(WithScope("audit", "read"))]
DownloadAuditor = Annotated[Caller, Depends(WithScope("audit"))]
Approver = Annotated[Caller, Depends(WithScope("approve"))]
Admin = Annotated[Caller, Depends(WithScope("admin"))]
