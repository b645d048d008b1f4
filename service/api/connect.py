"""`/connect`: webhooks that privacy platforms call, one URL a model; what they are told later is in connect/calls.py.

Fides calls with an API key. Transcend and DataGrail sign: they become API keys without a secret, by their names.
"""

import json
import time
from typing import Annotated, Any, Literal
from uuid import UUID

import jwt
from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError

from service.api.deps import Parts, Reader, Submitter
from service.api.requests import visible
from service.app import Services
from service.connect import datagrail
from service.connect.calls import DONE, Target
from service.db import keys
from service.domain.errors import Conflict, Forbidden, Invalid, Unauthenticated
from service.domain.states import TERMINAL_REQUESTS
from service.schemas.base import Text
from service.steps import request as step
from service.subjects.identifiers import EMAIL, PHONE_LIKE, NotAnIdentity, normalised

SOMBRA_SECONDS = 3600  # how old a token of Sombra's may be
NAMED = {"email": "email", "phone": "phone", "phone_number": "phone", "phoneNumber": "phone"}
router = APIRouter(prefix="/connect", tags=["connectors"])
ModelName = Annotated[str, Path(max_length=63, description="which model is unlearned")]


class Tolerant(BaseModel):
    """What a platform sends: members that are not named are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)


class FidesIn(Tolerant):
    """As docs/guides/fides/config.yml has Fides send it."""

    privacy_request_id: Text = Field(min_length=1, max_length=200)
    email: Text | None = Field(None, max_length=500)
    phone_number: Text | None = Field(None, max_length=100)
    external_id: Text | None = Field(None, max_length=500)


class FidesOut(BaseModel):
    """What Fides waits for."""

    id: UUID
    status: Literal["in_processing", "completed"]


class Value(Tolerant):
    """An identifier's value."""

    value: Text = Field(min_length=1, max_length=500)


class Profile(Tolerant):
    """The identifier that a webhook of Transcend is about."""

    identifier: Text = Field(min_length=1, max_length=500)
    type: Text | None = None


class Extras(Tolerant):
    """What Transcend sends besides."""

    profile: Profile | None = None


class TranscendIn(Tolerant):
    """A server webhook of Transcend."""

    type: Text
    coreIdentifier: Value  # noqa: N815  # theirs
    extras: Extras = Extras()


class DataGrailIn(Tolerant):
    """A webhook of DataGrail."""

    request_type: Text
    webhook_request_id: Text = Field(min_length=1, max_length=100)
    webhook_callback_url: AnyHttpUrl | None = None
    identifiers: dict[str, str | list[str]] = {}


@router.post("/fides/{model}", status_code=202)
def fides(
    model: ModelName,
    body: FidesIn,
    parts: Parts,
    key: Submitter,
    reply_to: Annotated[str | None, Header(max_length=500, pattern=r"^/[^/]")] = None,
    reply_to_token: Annotated[str | None, Header(max_length=8000)] = None,
) -> FidesOut:
    """An erasure of Fides', to be polled for, or to be called back on `reply-to`."""
    given = {"email": body.email, "phone": body.phone_number, "controller_customer_id": body.external_id}
    callbacks = []
    if reply_to and reply_to_token:
        if not parts.settings.fides_url:
            raise Invalid("Set UNLEARND_FIDES_URL: reply-to is a path on it.", field="reply-to")
        callbacks = [Target(parts.settings.fides_url.rstrip("/") + reply_to, reply_to_token)]
    values = [(kind, value) for kind, value in given.items() if value]
    return fides_status(_accept(parts, model, values, "fides", body.privacy_request_id, key.id, callbacks), parts, key)


@router.get("/fides/requests/{request_id}")
def fides_status(request_id: UUID, parts: Parts, key: Reader) -> FidesOut:
    """Where a request stands, as Fides polls; 409 once it has failed: Fides has no value for that."""
    request = visible(parts, request_id, key)
    if request.status in TERMINAL_REQUESTS - set(DONE):
        raise Conflict(f"The request is {request.status}.")
    return FidesOut(id=request.id, status="completed" if request.status in DONE else "in_processing")


@router.post("/transcend/{model}", response_class=Response)
async def transcend(
    model: ModelName,
    request: Request,
    parts: Parts,
    x_sombra_token: Annotated[str, Header(max_length=8000)],
    x_transcend_nonce: Annotated[str, Header(min_length=1, max_length=8000)],
) -> Response:
    """A server webhook of Transcend, one for each identifier; `PUT /v1/data-silo` tells it the end."""
    settings = parts.settings
    organization = settings.transcend_organization
    if not (settings.transcend_api_key and organization and settings.transcend_public_key.is_file()):
        raise Forbidden("Transcend is not set up here: UNLEARND_TRANSCEND_API_KEY, _ORGANIZATION and _PUBLIC_KEY.")
    try:
        claims = jwt.decode(
            x_sombra_token, settings.transcend_public_key.read_bytes(), ["ES384"], audience=organization,
            options={"require": ["iat", "aud"]},
        )  # fmt: skip
        if claims["iat"] < time.time() - SOMBRA_SECONDS:
            raise jwt.ExpiredSignatureError("old")
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"x-sombra-token is not valid ({type(error).__name__}).") from None
    body = _read(TranscendIn, await request.body())
    if claims.get("scope") != "coreIdentifier" or claims.get("value") != body.coreIdentifier.value:
        raise Unauthenticated("x-sombra-token is not about this core identifier.")
    if body.type != "ERASURE":
        raise Invalid("Only ERASURE is done here.", field="type")
    values = [(_kind(body.coreIdentifier.value), body.coreIdentifier.value)]
    if (profile := body.extras.profile) and (kind := _type_of(parts, profile.type or "")):
        values += [(kind, profile.identifier)]
    target = Target(f"{settings.transcend_url.rstrip('/')}/v1/data-silo", x_transcend_nonce)
    await run_in_threadpool(_accept_signed, parts, model, values, "transcend", x_transcend_nonce, [target])
    return Response('{"status": "queued"}', media_type="application/json")


@router.post("/datagrail/{model}", response_class=Response)
async def data_grail(
    model: ModelName,
    request: Request,
    parts: Parts,
    x_webhook_timestamp: Annotated[str, Header(max_length=20)],
    x_webhook_signature: Annotated[str, Header(max_length=200)],
) -> Response:
    """A webhook of DataGrail: a health check, or a deletion that its callback URL is told the end of."""
    secret, raw = parts.settings.datagrail_secret.get_secret_value(), await request.body()
    if not secret:
        raise Forbidden("DataGrail is not set up here: UNLEARND_DATAGRAIL_SECRET.")
    if not datagrail.is_signed(secret, x_webhook_timestamp, x_webhook_signature, raw):
        raise Unauthenticated("X-Webhook-Signature is not valid, or minutes old.")
    body = _read(DataGrailIn, raw)
    if body.request_type == "health_check":
        return Response('{"status": "ok"}', media_type="application/json")
    if body.request_type != "deletion":
        raise Invalid("Only deletion is done here.", field="request_type")
    targets = [Target(str(body.webhook_callback_url), body.webhook_request_id)] if body.webhook_callback_url else []
    lists = [(kind, v if isinstance(v, list) else [v]) for kind, v in body.identifiers.items()]
    values = [(kind, value) for name, vs in lists if (kind := _type_of(parts, name)) for value in vs]
    await run_in_threadpool(_accept_signed, parts, model, values, "datagrail", body.webhook_request_id, targets)
    return Response('{"status": "accepted"}', 202, media_type="application/json")


def _read(kind: type[Any], raw: bytes) -> Any:
    """A body that was read before it was parsed, because its signature is over the bytes."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _type_of(parts: Services, name: str) -> str | None:
    """The type of a platform's identifier by its name; None: not one that people are found by here."""
    return {**NAMED, **parts.settings.identifier_types}.get(name)


def _kind(value: str) -> str:
    """What a core identifier, which has no type, seems to be."""
    if EMAIL.fullmatch(value.strip()):
        return "email"
    return (
        "phone" if PHONE_LIKE.fullmatch(value.strip()) and value.strip().startswith("+") else "controller_customer_id"
    )


def _is_one(identity: dict[str, str]) -> bool:
    """Whether a value can be of its type."""
    try:
        normalised(identity["type"], identity["value"])
    except NotAnIdentity:
        return False
    return True


def _accept_signed(
    parts: Services, model: str, values: list[tuple[str, str]], platform: str, name: str, targets: list[Target]
) -> UUID:
    with parts.db.transaction() as session:
        caller = keys.external(session, platform, ["submit"])
    if caller is None:
        raise Unauthenticated("The platform was shut out.")
    return _accept(parts, model, values, platform, name, caller.id, targets)


def _accept(
    parts: Services,
    model: str,
    values: list[tuple[str, str]],
    platform: str,
    name: str,
    key_id: UUID,
    targets: list[Target],
) -> UUID:
    """Take a platform's request; the same again gives the same."""
    listed = [{"type": kind, "format": "raw", "value": value} for kind, value in dict.fromkeys(values)]
    identities = [identity for identity in listed if _is_one(identity)] or listed  # what is wrong is said if all are
    if not identities:
        raise Invalid("An identifier that people are found by here is needed.", field="identifiers")
    submission = step.Submission(
        model, [], None, "gdpr", None, targets, subject={"identities": identities, "names": []}, dialect=platform
    )
    return step.accept(parts, submission, key_id, json.dumps([platform, name])).request.id
