"""Tokens of platforms that count once."""

import hashlib
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.limit_tables import UsedToken


def use(session: Session, token: str, purpose: str, expires_at: datetime) -> bool:
    """Use a token for a purpose; false if it was used for another one. It is remembered until it expires."""
    digest, used_for = (hashlib.sha256(text.encode()).digest() for text in (token, purpose))
    session.execute(delete(UsedToken).where(UsedToken.expires_at < func.now()))
    new = insert(UsedToken).values(digest=digest, used_for=used_for, expires_at=expires_at)
    session.execute(new.on_conflict_do_nothing())
    return session.scalar(select(UsedToken.used_for).where(UsedToken.digest == digest)) == used_for
