"""The tables that say who decided what, and when: policies of models, and rejections of requests."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base
from service.domain.json_types import JsonObject


class PolicyVersion(Base):
    """A policy of a model. The model's row holds the policy in force; this table keeps all of them."""

    __tablename__ = "policy_versions"

    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    policy: Mapped[JsonObject]
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"), comment="null: not on record")
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Rejection(Base):
    """The rejection of a request that waited for approval, by an API key."""

    __tablename__ = "rejections"

    request_id: Mapped[UUID] = mapped_column(ForeignKey("deletion_requests.id"), primary_key=True)
    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
