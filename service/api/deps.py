"""Dependencies of endpoints: the services, and the caller with the needed scope."""

import time
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param

from service.api.limits import admission_from, peer
from service.api.listener import Listener
from service.api.oauth import AccessTokens
from service.api.rates import RateLimiter
from service.bootstrap import Services
from service.config import is_loopback
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.errors import Forbidden, Unauthenticated

SIGNED_IN = "unlearnd.signed_in"  # in the scope of a call that the console makes in this process: for whom
FORWARDING = ("forwarded", "x-real-ip", "via")  # beside X-Forwarded-...: headers that a proxy adds


def services_from(request: Request) -> Services:
    """The application's services."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_from(request)


ServicesDep = Annotated[Services, Depends(_services)]


def service_url(request: Request) -> str:
    """The service's URL: the public one, or the address of the own socket. The Host header is the client's word."""
    host, port = request.scope["server"]
    public_url = services_from(request).settings.public_url
    own = f"http://{f'[{host}]' if ':' in host else host}"
    return public_url or (own if port == 80 else f"{own}:{port}")


async def raw_body(request: Request) -> bytes:
    """The bytes of the body, for endpoints where a signature is over them."""
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]


async def authenticate(request: Request) -> Caller:
    """The caller, by the API key or access token of the request. Each request counts against its rate limit.

    A caller is remembered for a few seconds, so that the database is not asked each time. A revocation clears that
    memory.

    Raises:
        Unauthenticated: There is no key or token, or it is unknown, revoked or not valid.
        Unavailable: The keys that verify access tokens cannot be fetched now, or this address asks too often at once.
        RateLimited: The key made too many requests.
    """
    caller: Caller | None = request.scope.get(SIGNED_IN)
    if caller is None:
        caller = await _by_token(request)
    request.state.api_key_id = caller.id  # for the access log
    rate_limiter: RateLimiter = request.app.state.rate_limiter
    rate_limiter.count(str(caller.id), request.scope["path"])
    return caller


async def _by_token(request: Request) -> Caller:
    """The caller whose API key or access token the request has."""
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Send an API key: Authorization: Bearer KEY.")
    listener: Listener = request.app.state.listener
    key_hash = api_keys.hash_key(token)
    caller = listener.remembered_caller(key_hash)
    if caller is None:
        asked_at = time.monotonic()
        caller = await _look_up(request, token, key_hash)
        listener.remember_caller(key_hash, caller, asked_at)
    return caller


async def _look_up(request: Request, token: str, key_hash: bytes) -> Caller:
    """The caller with a key or token that is not remembered.

    Whoever sends it may be anybody. So it takes a turn of the address, and threads that serve nothing else. Access
    tokens have turns and threads of their own: an issuer that does not answer must not delay API keys.
    """
    admission = admission_from(request)
    access_tokens: AccessTokens = request.app.state.access_tokens
    if access_tokens.is_access_token(token):
        async with admission.turn(f"{peer(request)} with a token"):
            return await to_thread.run_sync(access_tokens.caller, token, limiter=access_tokens.limiter)
    async with admission.turn(peer(request)):
        services = services_from(request)
        caller = await to_thread.run_sync(_find_caller, services, key_hash, limiter=admission.key_lookups)
    if caller is None:
        raise Unauthenticated("The API key is unknown or revoked.")
    return caller


def _find_caller(services: Services, key_hash: bytes) -> Caller | None:
    with services.db.reading() as session:
        return api_keys.find_caller(session, key_hash)


class WithScope(SecurityBase):
    """A dependency on a caller who holds one of some scopes, or `admin`.

    `GuardedRoute` asks `identify` before it reads the body. The endpoint gets the same caller.
    """

    scheme_name = "HTTPBearer"
    model = HTTPBearer(description="An API key, or an OAuth 2 access token")

    def __init__(self, *scopes: str) -> None:
        """Require one of these scopes."""
        self._scopes = scopes

    async def identify(self, request: Request) -> Caller | None:
        """The caller; None for an endpoint that answers some requests without a key.

        Raises:
            Forbidden: The caller has none of the scopes. `authenticate` raises further errors.
        """
        caller = await authenticate(request)
        if not {*self._scopes, "admin"} & set(caller.scopes):
            raise Forbidden(f"This needs the scope {' or '.join(self._scopes)}.")
        return caller

    async def __call__(self, request: Request) -> Caller | None:
        """The caller that `GuardedRoute` identified."""
        caller: Caller | None = request.scope["unlearnd.caller"]
        return caller


class WithScopeUnlessLocal(WithScope):
    """The same, but a request from this machine needs no key while the service is for this machine alone.

    Behind a reverse proxy on this machine every request comes from it. So a service that has a public URL or trusted
    proxies asks everybody for a key, and a request that somebody forwarded counts as one from outside.
    """

    async def identify(self, request: Request) -> Caller | None:
        """The caller; None for a request from this machine. It raises what `WithScope` raises."""
        return None if _is_local(request) else await super().identify(request)


def _is_local(request: Request) -> bool:
    """Whether a request comes from this machine and was not forwarded."""
    settings = services_from(request).settings
    if settings.trusted_proxies or not is_loopback(urlsplit(settings.public_url).hostname or "localhost"):
        return False
    is_forwarded = any(name.startswith("x-forwarded") or name in FORWARDING for name in request.headers)
    return request.client is not None and is_loopback(request.client.host) and not is_forwarded


def restricted_to(caller: Caller, *all_request_scopes: str) -> UUID | None:
    """The API key to whose requests a caller is restricted: its own.

    None, no restriction, if the caller holds `admin` or one of `all_request_scopes`.
    """
    return None if {*all_request_scopes, "admin"} & set(caller.scopes) else caller.id


def is_auditor(caller: Caller) -> bool:
    """Whether a caller may see exact numbers about few submitters' texts."""
    return bool({"audit", "admin"} & set(caller.scopes))


def sees_counts(caller: Caller) -> bool:
    """Whether a caller may see how many records a search has matched; others see only whether it has matched any."""
    return bool({"approve", "audit", "admin"} & set(caller.scopes))


SEES_ALL_REQUESTS = ("read", "approve", "audit")  # a caller with `submit` alone sees its own requests
Submitter = Annotated[Caller, Depends(WithScope("submit"))]
Reader = Annotated[Caller, Depends(WithScope("read", "submit"))]
RequestReader = Annotated[Caller, Depends(WithScope("read", "approve", "submit"))]
Downloader = Annotated[Caller, Depends(WithScope("download"))]
VersionReader = Annotated[Caller, Depends(WithScope("read", "download", "submit"))]
JobReader = Annotated[Caller, Depends(WithScope(*SEES_ALL_REQUESTS, "submit"))]
MetricsReader = Annotated[Caller, Depends(WithScope(*SEES_ALL_REQUESTS))]
Auditor = Annotated[Caller, Depends(WithScope("audit", "read", "download", "submit"))]
LogReader = Annotated[Caller, Depends(WithScope("audit", "read"))]
DownloadAuditor = Annotated[Caller, Depends(WithScope("audit"))]
Previewer = Annotated[Caller, Depends(WithScope("preview", "approve"))]
Approver = Annotated[Caller, Depends(WithScope("approve"))]
Admin = Annotated[Caller, Depends(WithScope("admin"))]
