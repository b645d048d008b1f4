"""`/v1/api-keys`: make, list and revoke API keys."""

from uuid import UUID

from fastapi import APIRouter, Request

from service.api.deps import Admin, ServicesDep, Submitter
from service.api.guard import GuardedRoute
from service.callbacks import webhooks
from service.db import api_keys
from service.domain.errors import Conflict, NotFound
from service.schemas.api_keys import KeyCreated, KeyIn, KeyOut, WebhookSecret
from service.schemas.base import Listing

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"], route_class=GuardedRoute)


@router.post("", status_code=201)
def create(body: KeyIn, services: ServicesDep, _: Admin) -> KeyCreated:
    """Make an API key. Only this answer shows the key."""
    with services.db.transaction() as session:
        row, secret = api_keys.create(session, body.name, list(body.scopes))
        session.refresh(row)
    return KeyCreated(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        created_at=row.created_at,
        revoked_at=None,
        key=secret,
        webhook_secret=webhooks.webhook_secret(services.wrapper, row.id),
    )


@router.get("/self/webhook-secret")
def webhook_secret(services: ServicesDep, caller: Submitter) -> WebhookSecret:
    """The secret that signs callbacks for requests of the calling API key (Standard Webhooks)."""
    return WebhookSecret(webhook_secret=webhooks.webhook_secret(services.wrapper, caller.id))


@router.get("")
def listing(services: ServicesDep, _: Admin) -> Listing[KeyOut]:
    """All API keys, without their secrets."""
    with services.db.transaction() as session:
        rows = api_keys.listing(session)
    items = [KeyOut.model_validate(row, from_attributes=True) for row in rows]
    return Listing(items=items, next_cursor=None)


@router.delete("/{key_id}", status_code=204)
def revoke(key_id: UUID, request: Request, services: ServicesDep, caller: Admin) -> None:
    """Revoke an API key for good. A key cannot revoke itself, so the last admin key cannot lock everybody out."""
    if key_id == caller.id:
        raise Conflict("A key does not revoke itself; use another one.")
    with services.db.transaction() as session:
        if not api_keys.revoke(session, key_id):
            raise NotFound("There is no such key, or it was revoked before.")
    request.app.state.listener.forget_callers()
