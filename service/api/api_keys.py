"""`/v1/api-keys`: make, list and revoke API keys."""

from uuid import UUID

from fastapi import APIRouter, Request

from service.api.deps import Admin, ServicesDep, Submitter
from service.callbacks.webhooks import webhook_secret
from service.db import api_keys
from service.domain.errors import Conflict, NotFound
from service.schemas.api_keys import KeyCreated, KeyIn, KeyOut, WebhookSecret
from service.schemas.base import Listing

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"])


@router.post("", status_code=201)
def create(body: KeyIn, services: ServicesDep, _: Admin) -> KeyCreated:
    """Make a key; the answer is the only place where it is ever shown."""
    with services.db.transaction() as session:
        row, secret = api_keys.create(session, body.name, list(body.scopes))
        session.refresh(row)
    return KeyCreated(
        id=row.id, name=row.name, scopes=row.scopes, created_at=row.created_at, revoked_at=None, key=secret,
        webhook_secret=webhook_secret(services.wrapper, row.id),
    )  # fmt: skip


@router.get("/self/webhook-secret")
def own_webhook_secret(services: ServicesDep, key: Submitter) -> WebhookSecret:
    """What callbacks for requests of the key that asks are signed with (Standard Webhooks)."""
    return WebhookSecret(webhook_secret=webhook_secret(services.wrapper, key.id))


@router.get("")
def listing(services: ServicesDep, _: Admin) -> Listing[KeyOut]:
    """All keys, without their secrets."""
    with services.db.transaction() as session:
        rows = api_keys.listing(session)
    items = [KeyOut.model_validate(row, from_attributes=True) for row in rows]
    return Listing(items=items, next_cursor=None)


@router.delete("/{key_id}", status_code=204)
def revoke(key_id: UUID, request: Request, services: ServicesDep, key: Admin) -> None:
    """Revoke a key for good; not the one that asks, so that nobody shuts the last door from inside."""
    if key_id == key.id:
        raise Conflict("A key does not revoke itself; use another one.")
    with services.db.transaction() as session:
        if not api_keys.revoke(session, key_id):
            raise NotFound("There is no such key, or it was revoked before.")
    request.app.state.listener.forget()
