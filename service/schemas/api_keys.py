"""Bodies of the API key endpoints."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from service.schemas.base import Input, ShortList, Text


class KeyIn(Input):
    """The name and scopes of a new API key."""

    name: Text = Field(min_length=1, max_length=100)
    scopes: ShortList[Literal["submit", "read", "preview", "download", "audit", "approve", "admin"]] = Field(
        min_length=1
    )


class KeyOut(BaseModel):
    """An API key without its secret."""

    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class KeyCreated(KeyOut):
    """A new API key with its secret. The secret is shown only in this answer."""

    key: str
    webhook_secret: str = Field(description="signs the callbacks of its requests (Standard Webhooks)")


class WebhookSecret(BaseModel):
    """The secret with which a receiver checks the signatures of callbacks."""

    webhook_secret: str
