"""The tables that say who did what, and when: policies, approvals, rejections, downloads."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.base import Base
from service.db.tables import ApiKey
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


class Approval(Base):
    """The approval of a request, with its present records, by an API key."""

    __tablename__ = "approvals"

    request_id: Mapped[UUID] = mapped_column(ForeignKey("deletion_requests.id"), primary_key=True)
    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    reason: Mapped[str | None] = mapped_column(comment="a code")
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Download(Base):
    """The API keys that downloaded files of a version, to be notified when it is superseded (GDPR, article 19)."""

    __tablename__ = "downloads"

    version_id: Mapped[UUID] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())

    api_key: Mapped[ApiKey] = relationship()
