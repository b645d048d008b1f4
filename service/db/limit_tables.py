"""The tables behind limits: hosts that do not answer, previews of a minute, and tokens that count once."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base


class CallbackLane(Base):
    """A lane (an API key's callbacks to one host) that did not answer. A lane that answers has no row."""

    __tablename__ = "callback_lanes"

    lane: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    failures: Mapped[int] = mapped_column(comment="in a row, without an answer")
    next_at: Mapped[datetime] = mapped_column(comment="nothing is sent before")


class PreviewCount(Base):
    """How many identities and names an API key has looked up in previews, in the last minute in which it did."""

    __tablename__ = "preview_counts"

    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    minute: Mapped[datetime]
    count: Mapped[int] = mapped_column(comment="identities and names looked up in this minute")


class UsedToken(Base):
    """A platform's token that was used, until it expires by itself."""

    __tablename__ = "used_tokens"
    __table_args__ = (Index("ix_used_tokens_expires_at", "expires_at"),)

    digest: Mapped[bytes] = mapped_column(primary_key=True, comment="sha256 of a platform's token")
    used_for: Mapped[bytes] = mapped_column(comment="sha256 of what it was used for")
    expires_at: Mapped[datetime]
