"""API keys: `unl_` and 32 random bytes. The database holds the sha256 of a key."""

import hashlib
import math
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db import log_entries
from service.db.limit_tables import PreviewCount
from service.db.tables import ApiKey

CHANNEL = "unlearnd_keys"
SCOPES = ("submit", "read", "preview", "download", "audit", "approve", "admin")


def create(session: Session, name: str, scopes: list[str], *, key: str | None = None) -> tuple[ApiKey, str]:
    """Create and log a key, from `key` or from random bytes. Returns the row and the key, which is shown only now."""
    key = key or f"unl_{secrets.token_urlsafe(32)}"
    row = ApiKey(name=name, scopes=scopes, key_hash=hash_key(key))
    session.add(row)
    session.flush()
    log_entries.append(session, "api_key.created", key=str(row.id), scopes=scopes)
    return row, key


def hash_key(key: str) -> bytes:
    """The sha256 of a key. A key is so random that a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class Caller:
    """The API key of a call, not revoked, and its scopes. An access token ends at `expires_at` (Unix time)."""

    id: UUID
    scopes: list[str]
    expires_at: float = math.inf


def external_caller(session: Session, name: str, scopes: list[str], expires_at: float = math.inf) -> Caller | None:
    """A caller that a foreign token or signature authenticates, with these scopes; None if its row was revoked.

    The row's hash is of a string with a NUL, which no Authorization header can hold: no API key has the same hash.
    """
    key_hash = hash_key(f"\0{name}")
    new = insert(ApiKey).values(name=name, scopes=scopes, key_hash=key_hash).on_conflict_do_nothing()
    created = session.scalar(new.returning(ApiKey.id))
    if created is not None:
        log_entries.append(session, "api_key.created", key=str(created), scopes=scopes)
    caller = find_caller(session, key_hash)
    return Caller(caller.id, scopes, expires_at) if caller else None


def find_caller(session: Session, key_hash: bytes) -> Caller | None:
    """The id and scopes of the key with that hash, unless the key was revoked."""
    query = select(ApiKey.id, ApiKey.scopes).where(ApiKey.key_hash == key_hash, ApiKey.revoked_at.is_(None))
    row = session.execute(query).first()
    return Caller(row.id, row.scopes) if row else None


def count_preview(session: Session, key_id: UUID, count: int, per_minute: int) -> bool:
    """Count what a key looks up in previews; false, and nothing is counted, if it is too much for this minute."""
    if count > per_minute:
        return False
    minute = func.date_trunc("minute", func.now())
    begun = PreviewCount.minute == minute
    new = insert(PreviewCount).values(api_key_id=key_id, minute=minute, count=count)
    counted = new.on_conflict_do_update(
        index_elements=["api_key_id"],
        set_={"minute": minute, "count": count + case((begun, PreviewCount.count), else_=0)},
        where=~begun | (PreviewCount.count + count <= per_minute),
    )
    return session.scalar(counted.returning(PreviewCount.count)) is not None


def is_revoked(session: Session, key: str) -> bool:
    """Whether the key existed and was revoked."""
    query = select(ApiKey.id).where(ApiKey.key_hash == hash_key(key), ApiKey.revoked_at.is_not(None))
    return session.scalar(query) is not None


def is_valid(session: Session, caller: Caller) -> bool:
    """Whether a caller's key is not revoked and its access token has not expired."""
    query = select(ApiKey.id).where(ApiKey.id == caller.id, ApiKey.revoked_at.is_(None))
    return time.time() < caller.expires_at and session.scalar(query) is not None


def listing(session: Session) -> list[ApiKey]:
    """All keys, oldest first."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at)))


def ids(session: Session) -> list[UUID]:
    """The ids of all keys, revoked ones included."""
    return list(session.scalars(select(ApiKey.id)))


def revoke(session: Session, key_id: UUID) -> bool:
    """Revoke a key for good, log it, and notify every process that caches keys; false if no valid key has that id."""
    session.execute(select(func.pg_notify(CHANNEL, "")))
    valid = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    revoked = session.execute(valid.values(revoked_at=datetime.now(UTC)).returning(ApiKey.id))
    if revoked.first() is None:
        return False
    log_entries.append(session, "api_key.revoked", key=str(key_id))
    return True
