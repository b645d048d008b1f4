"""API keys: `unl_` and 32 random bytes; the database holds the sha256."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.tables import ApiKey

CHANNEL = "unlearnd_keys"
SCOPES = ("submit", "read", "download", "audit", "approve", "admin")


def create(session: Session, name: str, scopes: list[str], *, key: str | None = None) -> tuple[ApiKey, str]:
    """A new key (or the given one), and its secret, which is shown this once."""
    key = key or f"unl_{secrets.token_urlsafe(32)}"
    row = ApiKey(name=name, scopes=scopes, key_hash=hash_key(key))
    session.add(row)
    session.flush()
    return row, key


def hash_key(key: str) -> bytes:
    """sha256; the key is random enough that a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: an API key that was not revoked, and what it may do."""

    id: UUID
    scopes: list[str]


def external_caller(session: Session, name: str, scopes: list[str]) -> Caller | None:
    """Somebody who proves who they are without a secret of ours, with these scopes; None if that was revoked.

    The hash is of what no Authorization header can hold.
    """
    key_hash = hash_key(f"\0{name}")
    session.execute(insert(ApiKey).values(name=name, scopes=scopes, key_hash=key_hash).on_conflict_do_nothing())
    found = find_caller(session, key_hash)
    return Caller(found.id, scopes) if found else None


def find_caller(session: Session, key_hash: bytes) -> Caller | None:
    """The id and scopes of the key of that hash unless it was revoked."""
    query = select(ApiKey.id, ApiKey.scopes).where(ApiKey.key_hash == key_hash, ApiKey.revoked_at.is_(None))
    row = session.execute(query).first()
    return Caller(row.id, row.scopes) if row else None


def is_revoked(session: Session, key: str) -> bool:
    """Whether there was such a key and it was revoked."""
    query = select(ApiKey.id).where(ApiKey.key_hash == hash_key(key), ApiKey.revoked_at.is_not(None))
    return session.scalar(query) is not None


def listing(session: Session) -> list[ApiKey]:
    """All keys, oldest first."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at)))


def revoke(session: Session, key_id: UUID) -> bool:
    """Revoke a key for good, and tell every process that remembers it; false if there is none that was valid."""
    session.execute(select(func.pg_notify(CHANNEL, "")))
    found = session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=datetime.now(UTC))
        .returning(ApiKey.id)
    )
    return found.first() is not None
