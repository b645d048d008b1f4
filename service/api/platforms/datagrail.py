"""`/connect/datagrail`: webhooks that DataGrail signs."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from service.api.deps import RawBody, ServicesDep
from service.api.guard import GuardedRoute
from service.api.platforms.intake import (
    MAX_IDENTITIES,
    MAX_VALUE,
    Identifier,
    ModelName,
    PlatformBody,
    accept_signed,
    identity_type,
    parse_signed,
)
from service.bootstrap import Services
from service.callbacks import datagrail_signature
from service.domain.errors import Forbidden, Invalid, Unauthenticated
from service.domain.submission import CallbackTarget
from service.schemas.base import CallbackUrl, ShortList, Text

Value = Annotated[Text, Field(max_length=MAX_VALUE)]
router = APIRouter(prefix="/connect", tags=["connectors"], route_class=GuardedRoute)


class DataGrailIn(PlatformBody):
    """A webhook of DataGrail."""

    request_type: Text = Field(max_length=100)
    webhook_request_id: Text = Field(min_length=1, max_length=100)
    webhook_callback_url: CallbackUrl | None = None
    identifiers: dict[str, Value | ShortList[Value]] = Field({}, max_length=MAX_IDENTITIES)


@router.post("/datagrail/{model}", response_class=Response)
async def data_grail(
    model: ModelName,
    raw: RawBody,
    services: ServicesDep,
    x_webhook_timestamp: Annotated[str, Header(max_length=20)],
    x_webhook_signature: Annotated[str, Header(max_length=200)],
) -> Response:
    """A webhook of DataGrail: a health check, or a deletion. The callback URL is called when the deletion ends.

    DataGrail signs the time and the body, not the path with the model. So each model has a secret of its own.
    """
    secrets = services.settings.datagrail_secrets
    if not secrets:
        raise Forbidden("DataGrail is not set up here: UNLEARND_DATAGRAIL_SECRETS.")
    secret = secrets[model].get_secret_value() if model in secrets else None
    if not secret or not datagrail_signature.is_signed(secret, x_webhook_timestamp, x_webhook_signature, raw):
        raise Unauthenticated("X-Webhook-Signature is not valid, or minutes old.")
    body = parse_signed(DataGrailIn, raw)
    if body.request_type == "health_check":
        return Response('{"status": "ok"}', media_type="application/json")
    if body.request_type != "deletion":
        raise Invalid("Only deletion is supported here.", field="request_type")
    url = body.webhook_callback_url
    targets = [CallbackTarget(str(url), body.webhook_request_id)] if url else []
    identifiers = _identifiers(services, body)
    await run_in_threadpool(accept_signed, services, model, identifiers, "datagrail", body.webhook_request_id, targets)
    return Response('{"status": "accepted"}', 202, media_type="application/json")


def _identifiers(services: Services, body: DataGrailIn) -> list[Identifier]:
    """The identifiers whose names are known here."""
    identifiers: list[Identifier] = []
    for name, value in body.identifiers.items():
        kind = identity_type(services, name)
        if kind:
            identifiers += [(kind, item) for item in (value if isinstance(value, list) else [value])]
    return identifiers
