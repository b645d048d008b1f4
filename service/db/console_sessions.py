"""Sessions of the console: who has signed in with a browser, until when. The database holds a hash of the cookie."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ForeignKey, Index, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.db.api_keys import Caller, hash_key
from service.db.base import Base
from service.db.tables import ApiKey


class ConsoleSession(Base):
    """A session. Its end, or the end of its API key, ends it."""

    __tablename__ = "console_sessions"
    __table_args__ = (
        Index("ix_console_sessions_expires_at", "expires_at"),
        Index("ix_console_sessions_api_key_id", "api_key_id"),
    )

    digest: Mapped[bytes] = mapped_column(primary_key=True, comment="sha256 of the cookie")
    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    scopes: Mapped[list[str]] = mapped_column(comment="of the key, or of who signed in elsewhere")
    expires_at: Mapped[datetime]


class SignedIn(NamedTuple):
    """Who is signed in: the caller, whose access ends with the session, and the name of the API key."""

    caller: Caller
    name: str


def begin(session: Session, caller: Caller, lifetime: timedelta) -> str:
    """Begin a session; returns the cookie's value. Removes sessions that have expired."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.expires_at < func.now()))
    cookie = secrets.token_urlsafe(32)
    ends = min(datetime.now(UTC) + lifetime, _datetime(caller.expires_at))
    row = ConsoleSession(digest=hash_key(cookie), api_key_id=caller.id, scopes=caller.scopes, expires_at=ends)
    session.add(row)
    return cookie


def _datetime(seconds: float) -> datetime:
    """A Unix time, which may be infinite."""
    return datetime.fromtimestamp(min(seconds, 2**35), UTC)


def find(session: Session, cookie: str) -> SignedIn | None:
    """Who has this cookie; None if the session has ended or its API key was revoked."""
    query = (
        select(ApiKey.id, ApiKey.name, ConsoleSession.scopes, ConsoleSession.expires_at)
        .join(ApiKey, ApiKey.id == ConsoleSession.api_key_id)
        .where(ConsoleSession.digest == hash_key(cookie), ConsoleSession.expires_at > func.now())
        .where(ApiKey.revoked_at.is_(None))
    )
    row = session.execute(query).first()
    return SignedIn(Caller(row.id, row.scopes, row.expires_at.timestamp()), row.name) if row else None


def end(session: Session, cookie: str) -> None:
    """End a session."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.digest == hash_key(cookie)))


def end_all(session: Session, api_key_id: UUID) -> None:
    """End every session of an API key."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.api_key_id == api_key_id))
