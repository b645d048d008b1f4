"""The tables of the transparency log. Only SQL functions write them."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, func, true
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base


class AuditEntry(Base):
    """An entry of the append-only log. Only the SQL function `audit_append` writes it (RFC 6962 leaf hashes)."""

    __tablename__ = "audit_entries"

    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    entry: Mapped[bytes] = mapped_column(comment="canonical JSON; ids and digests only")
    leaf_hash: Mapped[bytes]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class LogHome(Base):
    """The database in which the log goes on, and its last move; one row, which only SQL functions write."""

    __tablename__ = "log_home"
    __table_args__ = (CheckConstraint("one", name="one"),)

    one: Mapped[bool] = mapped_column(primary_key=True, server_default=true())
    home: Mapped[str] = mapped_column(comment="cluster, database and timeline in which the log goes on")
    moved_at: Mapped[datetime | None] = mapped_column(comment="null: an operator has seen it")
    brought_back: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="entries of the log")
    lost: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="refs of accepted requests that the database has lost"
    )
