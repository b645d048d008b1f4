"""OAuth 2 client credentials beside API keys: access tokens of one issuer, which are JWTs (RFC 9068).

Each client, named by issuer and subject, gets an API key without a secret, so that its requests belong to it. Revoking
that key shuts the client out, whatever its tokens say. The claim `scope` holds our own scopes.
"""

from functools import cached_property

import jwt
from anyio import CapacityLimiter

from service.bootstrap import Services
from service.db import api_keys
from service.db.api_keys import Caller
from service.domain.errors import Unauthenticated, Unavailable
from service.domain.json_types import JsonObject

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
ACCESS_TOKEN_TYPES = ("at+jwt", "application/at+jwt")  # refuses ID tokens of the same issuer (RFC 9068, 4)
JWKS_SECONDS = 300
MAX_THREADS = 4


class AccessTokens:
    """Checks the access tokens of one issuer."""

    def __init__(self, services: Services) -> None:
        """Fetch the issuer's keys (JWKS, RFC 7517) at the first token, and again after `JWKS_SECONDS`."""
        self._services, self._settings = services, services.settings
        self.limiter = CapacityLimiter(MAX_THREADS)

    @cached_property
    def _jwks(self) -> jwt.PyJWKClient:
        return jwt.PyJWKClient(self._settings.oauth_jwks_url, lifespan=JWKS_SECONDS, timeout=3, cooldown_duration=2)

    def is_access_token(self, token: str) -> bool:
        """Whether access tokens are in use and this has the form of one."""
        return bool(self._settings.oauth_jwks_url) and token.count(".") == 2

    def caller(self, token: str) -> Caller:
        """The caller that a token names.

        Raises:
            Unauthenticated: The token is not valid, or the client was shut out.
            Unavailable: The issuer's keys cannot be fetched now.
        """
        claims = self._verified_claims(token)
        scopes = sorted(set(str(claims.get("scope", "")).split()) & set(self._settings.oauth_scopes))
        with self._services.db.transaction() as session:
            caller = api_keys.external_caller(session, f"oauth {claims['iss']} {claims['sub']}", scopes, claims["exp"])
        if caller is None:
            raise Unauthenticated("The client was shut out.")
        return caller

    def _verified_claims(self, token: str) -> JsonObject:
        """The claims of a token whose signature, type, issuer, audience and times are valid."""
        try:
            header = jwt.get_unverified_header(token)
            if str(header.get("typ", "")).lower() not in ACCESS_TOKEN_TYPES or header.get("alg") not in ALGORITHMS:
                raise jwt.InvalidTokenError("not an access token")
            key = self._jwks.get_signing_key_from_jwt(token).key  # a key without `alg` is fine: we list algorithms
            claims: JsonObject = jwt.decode(
                token,
                key,
                ALGORITHMS,
                issuer=self._settings.oauth_issuer,
                audience=self._settings.oauth_audience,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, ValueError, OSError):
            raise Unavailable("The issuer of access tokens does not answer; nothing was changed.") from None
        except (jwt.PyJWTError, TypeError) as error:  # TypeError: the algorithm does not fit the type of the key
            raise Unauthenticated(f"The access token is not valid ({type(error).__name__}).") from None
        return claims
