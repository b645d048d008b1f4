"""`/connect/transcend`: server webhooks of Transcend, which its Sombra gateway signs."""

import time
from typing import Annotated

import jwt
from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from service.api.deps import ServicesDep
from service.api.platforms.intake import (
    Identifier,
    ModelName,
    PlatformBody,
    accept_signed,
    identity_type,
    parse_signed,
)
from service.bootstrap import Services
from service.config import Settings
from service.domain.errors import Forbidden, Invalid, Unauthenticated
from service.domain.json_types import JsonObject
from service.domain.submission import CallbackTarget
from service.schemas.base import Text
from service.subjects.identifiers import EMAIL, PHONE_LIKE

MAX_TOKEN_SECONDS = 3600  # the age up to which a token of Sombra is accepted
router = APIRouter(prefix="/connect", tags=["connectors"])


class Value(PlatformBody):
    """An identifier's value."""

    value: Text = Field(min_length=1, max_length=500)


class Profile(PlatformBody):
    """The profile of the person, with one identifier."""

    identifier: Text = Field(min_length=1, max_length=500)
    type: Text | None = None


class Extras(PlatformBody):
    """Further members of a webhook."""

    profile: Profile | None = None


class TranscendIn(PlatformBody):
    """A server webhook of Transcend."""

    type: Text
    coreIdentifier: Value  # noqa: N815  # Transcend's name
    extras: Extras = Extras()


@router.post("/transcend/{model}", response_class=Response)
async def transcend(
    model: ModelName,
    request: Request,
    services: ServicesDep,
    x_sombra_token: Annotated[str, Header(max_length=8000)],
    x_transcend_nonce: Annotated[str, Header(min_length=1, max_length=8000)],
) -> Response:
    """A server webhook of Transcend, one for each identifier. `PUT /v1/data-silo` reports the result to Transcend."""
    settings = services.settings
    claims = _verified_claims(settings, x_sombra_token)
    body = parse_signed(TranscendIn, await request.body())
    if claims.get("scope") != "coreIdentifier" or claims.get("value") != body.coreIdentifier.value:
        raise Unauthenticated("x-sombra-token is not about this core identifier.")
    if body.type != "ERASURE":
        raise Invalid("Only ERASURE is supported here.", field="type")
    target = CallbackTarget(f"{settings.transcend_url.rstrip('/')}/v1/data-silo", x_transcend_nonce)
    identifiers = _identifiers(services, body)
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
        if claims["iat"] < time.time() - MAX_TOKEN_SECONDS:
            raise jwt.ExpiredSignatureError("old")
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"x-sombra-token is not valid ({type(error).__name__}).") from None
    return claims


def _identifiers(services: Services, body: TranscendIn) -> list[Identifier]:
    """The core identifier and, if its type is known here, the profile's identifier."""
    core = body.coreIdentifier.value
    identifiers = [(_guess_type(core), core)]
    if (profile := body.extras.profile) and (kind := identity_type(services, profile.type or "")):
        identifiers.append((kind, profile.identifier))
    return identifiers


def _guess_type(value: str) -> str:
    """The identity type of a core identifier, guessed from its value: Transcend sends no type."""
    value = value.strip()
    if EMAIL.fullmatch(value):
        return "email"
    return "phone" if PHONE_LIKE.fullmatch(value) and value.startswith("+") else "controller_customer_id"
