"""`/connect/transcend`: server webhooks of Transcend, which its Sombra gateway signs."""

import json
import time
from datetime import UTC, datetime
from typing import Annotated

import jwt
from fastapi import APIRouter, Header, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from service.api.deps import RawBody, ServicesDep
from service.api.guard import GuardedRoute
from service.api.platforms.intake import (
    Identifier,
    ModelName,
    PlatformBody,
    accept_signed,
    parse_signed,
)
from service.bootstrap import Services
from service.callbacks.dialects import transcend_url
from service.config import Settings
from service.db import used_tokens
from service.domain.errors import Forbidden, Invalid, Unauthenticated
from service.domain.json_types import JsonObject
from service.domain.submission import CallbackTarget
from service.schemas.base import Text
from service.subjects.identifiers import EMAIL, PHONE_LIKE

MAX_TOKEN_SECONDS = 3600  # the age up to which a token of Sombra is accepted
router = APIRouter(prefix="/connect", tags=["connectors"], route_class=GuardedRoute)


class Value(PlatformBody):
    """An identifier's value."""

    value: Text = Field(min_length=1, max_length=500)


class Profile(PlatformBody):
    """The profile of the person, with the identifier that the webhook is about."""

    identifier: Text = Field(min_length=1, max_length=500)


class Extras(PlatformBody):
    """Further members of a webhook."""

    profile: Profile | None = None


class TranscendIn(PlatformBody):
    """A server webhook of Transcend."""

    type: Text = Field(max_length=100)
    coreIdentifier: Value  # noqa: N815  # Transcend's name
    extras: Extras = Extras()


@router.post("/transcend/{model}", response_class=Response)
async def transcend(
    model: ModelName,
    raw: RawBody,
    services: ServicesDep,
    x_sombra_token: Annotated[str, Header(max_length=8000)],
    x_transcend_nonce: Annotated[str, Header(min_length=1, max_length=8000)],
) -> Response:
    """A server webhook of Transcend about the core identifier, which its token signs.

    `PUT /v1/data-silo` reports the result to Transcend.
    """
    settings = services.settings
    claims = _verified_claims(settings, x_sombra_token)
    body = parse_signed(TranscendIn, raw)
    if claims.get("scope") != "coreIdentifier" or claims.get("value") != body.coreIdentifier.value:
        raise Unauthenticated("x-sombra-token is not about this core identifier.")
    if body.type != "ERASURE":
        raise Invalid("Only ERASURE is supported here.", field="type")
    identifier = _core_identifier(body)
    await run_in_threadpool(_use_token, services, x_sombra_token, int(claims["iat"]), model, x_transcend_nonce)
    target, identifiers = CallbackTarget(transcend_url(services), x_transcend_nonce), [identifier]
    await run_in_threadpool(accept_signed, services, model, identifiers, "transcend", x_transcend_nonce, [target])
    return Response('{"status": "queued"}', media_type="application/json")


def _verified_claims(settings: Settings, token: str) -> JsonObject:
    """The claims of a token that Sombra signed at most `MAX_TOKEN_SECONDS` ago.

    Raises:
        Forbidden: Transcend is not set up here.
        Unauthenticated: The token is not valid.
    """
    organization = settings.transcend_organization
    if not (settings.transcend_api_key and organization and settings.transcend_public_key.is_file()):
        raise Forbidden("Transcend is not set up here: UNLEARND_TRANSCEND_API_KEY, _ORGANIZATION and _PUBLIC_KEY.")
    try:
        claims: JsonObject = jwt.decode(
            token,
            settings.transcend_public_key.read_bytes(),
            ["ES384"],
            audience=organization,
            options={"require": ["iat", "aud"]},
        )
        if int(claims["iat"]) < time.time() - MAX_TOKEN_SECONDS:
            raise jwt.ExpiredSignatureError("old")
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"x-sombra-token is not valid ({type(error).__name__}).") from None
    return claims


def _use_token(services: Services, token: str, issued_at: int, model: str, nonce: str) -> None:
    """Let a token count for one nonce and one model, which it does not sign. Transcend may repeat that webhook.

    Raises:
        Unauthenticated: The token was used for another one.
    """
    signed = token.rpartition(".")[0]  # without the signature: ECDSA has a second valid one for the same content
    expires_at = datetime.fromtimestamp(issued_at + MAX_TOKEN_SECONDS, UTC)
    with services.db.transaction() as session:
        first = used_tokens.use(session, signed, json.dumps([model, nonce]), expires_at)
    if not first:
        raise Unauthenticated("x-sombra-token was used for another webhook.")


def _core_identifier(body: TranscendIn) -> Identifier:
    """The core identifier, with the type that its value suggests.

    Raises:
        Invalid: The webhook is about another identifier. It is not signed, and to leave it out would be to report an
            erasure that was not made.
    """
    core, profile = body.coreIdentifier.value.strip(), body.extras.profile
    if profile and profile.identifier.strip().casefold() != core.casefold():
        raise Invalid("Only the core identifier is signed; let it be this one.", field="extras.profile.identifier")
    return _guess_type(core), core


def _guess_type(value: str) -> str:
    """The identity type of a core identifier, guessed from its value: Transcend sends no type."""
    if EMAIL.fullmatch(value):
        return "email"
    return "phone" if PHONE_LIKE.fullmatch(value) and value.startswith("+") else "controller_customer_id"
