"""API keys."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from service.schemas.base import In, Text


class KeyIn(In):
    """Make an API key."""

    name: Text = Field(min_length=1, max_length=100)
    scopes: list[Literal["submit", "read", "download", "audit", "approve", "admin"]] = Field(min_length=1)


class KeyOut(BaseModel):
    """An API key without its secret."""

    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class KeyCreated(KeyOut):
    """The answer to making a key: the secret, this once."""

    key: str
    webhook_secret: str = Field(description="callbacks for its requests are signed with it (Standard Webhooks)")


class WebhookSecret(BaseModel):
    """What a receiver of callbacks checks their signatures with."""

    webhook_secret: str
