"""Sign-in with OpenID Connect: the code flow with PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636).

A claim of the ID token says which groups somebody is in, and a setting which scopes a group has. Whoever is in none of
them does not come in. Each person, named by issuer and subject, gets an API key without a secret: revoking it shuts the
person out.
"""

import secrets
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import httpx
import jwt
from anyio import to_thread
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from fastapi import APIRouter, Request, Response

from service.api.deps import ServicesDep, service_url, services_from
from service.api.limits import admission_from, peer
from service.api.oauth import ALGORITHMS, AccessTokens
from service.bootstrap import Services
from service.config import Settings
from service.console.pages import PageRoute, page, see
from service.console.sign_in import own_path, set_session
from service.db import api_keys, console_sessions
from service.domain.errors import Forbidden, NotFound, Unavailable

PATH, COOKIE = "/console/sign-in/oidc", "unlearnd_oidc"
FLOW_SECONDS = 600  # within which somebody must have signed in at the provider
TIMEOUT, LEEWAY = 5, 30  # seconds


class FlowRoute(PageRoute):
    """The route of a flow: a provider may come back with parameters of its own."""

    ignores_parameters: ClassVar[bool] = True


router = APIRouter(prefix="/console/sign-in/oidc", route_class=FlowRoute, include_in_schema=False)


class Provider:
    """The provider that the settings name."""

    def __init__(self, settings: Settings) -> None:
        """Ask it nothing yet."""
        self._settings = settings
        self._metadata: dict[str, Any] | None = None

    async def metadata(self) -> dict[str, Any]:
        """What it says of itself (OpenID Connect Discovery 1.0).

        Raises:
            Unavailable: It does not answer, or speaks for another issuer.
        """
        if self._metadata is None:
            url = f"{self._settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                    metadata = (await client.get(url)).raise_for_status().json()
            except (httpx.HTTPError, ValueError):
                raise Unavailable("The provider for signing in does not answer.") from None
            if metadata.get("issuer") != self._settings.oidc_issuer:
                raise Unavailable("The provider for signing in speaks for another issuer; see UNLEARND_OIDC_ISSUER.")
            self._metadata = metadata
        return self._metadata

    def client(self, redirect_uri: str) -> AsyncOAuth2Client:
        """A client of it that comes back to this address."""
        return AsyncOAuth2Client(
            self._settings.oidc_client_id,
            self._settings.oidc_client_secret.get_secret_value(),
            scope=self._settings.oidc_scope,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT,
        )

    @cached_property
    def _jwks(self) -> jwt.PyJWKClient:
        assert self._metadata is not None
        return jwt.PyJWKClient(self._metadata["jwks_uri"], timeout=TIMEOUT)

    def claims(self, id_token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token (OpenID Connect Core 1.0, 3.1.3.7).

        Raises:
            Forbidden: It is not for us, not of this sign-in, or not valid.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                id_token,
                self._jwks.get_signing_key_from_jwt(id_token).key,
                ALGORITHMS,
                issuer=self._settings.oidc_issuer,
                audience=self._settings.oidc_client_id,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
                leeway=LEEWAY,
            )
        except (jwt.PyJWKClientConnectionError, OSError):
            raise Unavailable("The provider for signing in does not answer.") from None
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise Forbidden(f"The provider's answer is not valid ({type(error).__name__}).") from None
        if claims.get("azp", self._settings.oidc_client_id) != self._settings.oidc_client_id:
            raise Forbidden("The provider's answer is for another client.")
        if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise Forbidden("The provider's answer belongs to another sign-in.")
        return claims

    def scopes(self, claims: dict[str, Any]) -> list[str]:
        """The scopes of somebody with these claims.

        Raises:
            Forbidden: There are none.
        """
        groups = claims.get(self._settings.oidc_claim) or []
        named = groups.split() if isinstance(groups, str) else map(str, groups)
        scopes = {scope for group in named for scope in self._settings.oidc_roles.get(group, ())}
        if not scopes:
            raise Forbidden("You are in no group that may use the console. Ask whoever keeps UNLEARND_OIDC_ROLES.")
        return sorted(scopes)


def _provider(request: Request) -> Provider:
    """The provider of this process.

    Raises:
        NotFound: The settings name none.
    """
    settings = services_from(request).settings
    if not settings.oidc_issuer:
        raise NotFound("Nobody signs in with OpenID Connect here.")
    if not hasattr(request.app.state, "oidc_provider"):
        request.app.state.oidc_provider = Provider(settings)
    provider: Provider = request.app.state.oidc_provider
    return provider


@router.get("")
async def begin(request: Request, after: str = "") -> Response:
    """Send the browser to the provider. A cookie remembers the sign-in that it must come back with."""
    provider = _provider(request)
    metadata = await provider.metadata()
    nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    async with provider.client(service_url(request) + f"{PATH}/back") as client:
        url, state = client.create_authorization_url(
            metadata["authorization_endpoint"], code_verifier=verifier, nonce=nonce
        )
    answer = see(url)
    value = "|".join((state, nonce, verifier, quote(own_path(after), safe="")))
    secure = service_url(request).startswith("https://")
    answer.set_cookie(COOKIE, value, FLOW_SECONDS, path=PATH, secure=secure, httponly=True, samesite="lax")
    return answer


@router.get("/back")
async def back(request: Request, services: ServicesDep, state: str = "", code: str = "") -> Response:
    """Begin the session of whoever comes back from the provider.

    The answer is a page that leads on, and no redirect: a browser sends no `SameSite=Strict` cookie on the way from
    another site.
    """
    provider = _provider(request)
    begun, nonce, verifier, quoted = (request.cookies.get(COOKIE, "").split("|") + [""] * 4)[:4]
    if not code or not begun or not secrets.compare_digest(begun.encode(), state.encode()):
        raise Forbidden("This sign-in was not begun here, or it took too long. Sign in again.")
    metadata = await provider.metadata()
    try:
        async with provider.client(service_url(request) + f"{PATH}/back") as client:
            token = await client.fetch_token(metadata["token_endpoint"], code=code, code_verifier=verifier)
    except (AuthlibBaseError, httpx.HTTPError, ValueError) as error:
        raise Forbidden(f"The provider did not confirm the sign-in ({type(error).__name__}).") from None
    tokens: AccessTokens = (
        request.app.state.access_tokens
    )  # its threads: a provider may be slow, and keys must not wait
    async with admission_from(request).turn(f"{peer(request)} with a token"):
        id_token = str(token.get("id_token", ""))
        cookie = await to_thread.run_sync(_begin, services, provider, id_token, nonce, limiter=tokens.limiter)
    answer = page("signed_in.html", None, after=own_path(unquote(quoted)))
    set_session(request, answer, cookie)
    answer.delete_cookie(COOKIE, path=PATH)
    return answer


def _begin(services: Services, provider: Provider, id_token: str, nonce: str) -> str:
    """The cookie of a new session.

    Raises:
        Forbidden: The token is not valid, or its subject may not come in.
    """
    claims = provider.claims(id_token, nonce)
    scopes = provider.scopes(claims)
    with services.db.transaction() as session:
        caller = api_keys.external_caller(session, f"oidc {claims['iss']} {claims['sub']}", scopes)
        if caller is None:
            raise Forbidden("You were shut out.")
        return console_sessions.begin(session, caller, timedelta(seconds=services.settings.console_seconds))
