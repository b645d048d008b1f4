"""`/connect/fides`: erasures that Fides sends with an API key and polls for."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field

from service.api.deps import Reader, ServicesDep, Submitter
from service.api.guard import GuardedRoute
from service.api.platforms.intake import ModelName, PlatformBody, accept_from_platform
from service.api.requests import visible_request
from service.callbacks.dialects import SUCCESSFUL, fides_url
from service.domain.errors import Conflict, Invalid
from service.domain.states import TERMINAL_REQUESTS
from service.domain.submission import CallbackTarget
from service.schemas.base import Text

router = APIRouter(prefix="/connect", tags=["connectors"], route_class=GuardedRoute)


class FidesIn(PlatformBody):
    """The body that Fides sends with docs/guides/fides/config.yml."""

    privacy_request_id: Text = Field(min_length=1, max_length=200)
    email: Text | None = Field(None, max_length=500)
    phone_number: Text | None = Field(None, max_length=100)
    external_id: Text | None = Field(None, max_length=500)


class FidesOut(BaseModel):
    """The status that Fides polls for."""

    id: UUID
    status: Literal["in_processing", "completed"]


@router.post("/fides/{model}", status_code=202)
def fides(
    model: ModelName,
    body: FidesIn,
    services: ServicesDep,
    caller: Submitter,
    reply_to: Annotated[Literal["/api/v1/request-task/callback"] | None, Header()] = None,
    reply_to_token: Annotated[str | None, Header(max_length=8000)] = None,
) -> FidesOut:
    """Accept an erasure of Fides. Fides polls for its end, or is called back on `reply-to`."""
    values = {"email": body.email, "phone": body.phone_number, "controller_customer_id": body.external_id}
    identifiers = [(kind, value) for kind, value in values.items() if value]
    targets = []
    if reply_to and reply_to_token:
        if not services.settings.fides_url:
            raise Invalid("Set UNLEARND_FIDES_URL: reply-to is a path on it.", field="reply-to")
        targets = [CallbackTarget(fides_url(services), reply_to_token)]
    request_id = accept_from_platform(
        services, model, identifiers, "fides", body.privacy_request_id, caller.id, targets
    )
    return fides_status(request_id, services, caller)


@router.get("/fides/requests/{request_id}")
def fides_status(request_id: UUID, services: ServicesDep, caller: Reader) -> FidesOut:
    """The status of a request, as Fides polls for it. A failed request gives a 409: Fides has no status for it."""
    request = visible_request(services, request_id, caller)
    if request.status in TERMINAL_REQUESTS - set(SUCCESSFUL):
        raise Conflict(f"The request is {request.status}.")
    return FidesOut(id=request.id, status="completed" if request.status in SUCCESSFUL else "in_processing")
