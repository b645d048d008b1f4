"""OAuth 2 client credentials beside API keys: access tokens that are JWTs (RFC 9068) of one issuer.

A client becomes an API key without a secret, by its issuer and subject, so that what it submits is its own; revoking
that key shuts it out whatever its tokens say. Scopes are ours, in the claim `scope`.
"""

import time
from functools import cached_property
from typing import Any

import jwt
from anyio import CapacityLimiter

from service.bootstrap import Services
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.errors import Unauthenticated, Unavailable

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
TYPES = ("at+jwt", "application/at+jwt")  # an ID token of the same issuer is not one for us (RFC 9068, 4)
JWKS_SECONDS = 300


class Tokens:
    """Checks the access tokens of one issuer."""

    def __init__(self, services: Services) -> None:
        """Fetch the issuer's keys (JWKS, RFC 7517) when they are needed first, and again every few minutes."""
        self._services, self._settings = services, services.settings
        self.limiter = CapacityLimiter(4)

    @cached_property
    def _jwks(self) -> jwt.PyJWKClient:
        return jwt.PyJWKClient(self._settings.oauth_jwks_url, lifespan=JWKS_SECONDS, timeout=3, cooldown_duration=2)

    def concerns(self, token: str) -> bool:
        """Whether this is for us to judge: tokens are in use, and it has the form of one."""
        return bool(self._settings.oauth_jwks_url) and token.count(".") == 2

    def caller(self, token: str) -> tuple[Caller, float]:
        """Who calls, by a token, and for how many seconds that holds.

        Raises:
            Unauthenticated: It is not valid, or the client was shut out.
            Unavailable: The issuer's keys cannot be fetched now.
        """
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            if str(header.get("typ", "")).lower() not in TYPES or header.get("alg") not in ALGORITHMS:
                raise jwt.InvalidTokenError("not an access token")
            key = self._jwks.get_signing_key_from_jwt(token).key  # its `alg` need not say which: ours are listed
            claims: dict[str, Any] = jwt.decode(
                token, key, ALGORITHMS, issuer=settings.oauth_issuer, audience=settings.oauth_audience,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, ValueError, OSError):
            raise Unavailable("The issuer of access tokens does not answer; nothing was changed.") from None
        except (jwt.PyJWTError, TypeError) as error:  # TypeError: an algorithm of another family than the key
            raise Unauthenticated(f"The access token is not valid ({type(error).__name__}).") from None
        scopes = sorted(set(str(claims.get("scope", "")).split()) & set(settings.oauth_scopes))
        with self._services.db.transaction() as session:
            found = api_keys.external_caller(session, f"oauth {claims['iss']} {claims['sub']}", scopes)
        if found is None:
            raise Unauthenticated("The client was shut out.")
        return found, claims["exp"] - time.time()
