"""The tables of rechecks: all earlier requests of a model, measured in full on one version, in shards."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.base import Base
from service.db.tables import Model, Version


class Recheck(Base):
    """A measurement of all earlier requests of a model on one version. Any idle compute worker takes its shards."""

    __tablename__ = "rechecks"
    __table_args__ = (
        Index("uq_rechecks_open_model", "model_id", unique=True, postgresql_where=text("finished_at IS NULL")),
        Index("ix_rechecks_model_seq", "model_id", "seq"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    version_id: Mapped[UUID] = mapped_column(ForeignKey("versions.id"))
    requests: Mapped[int] = mapped_column(comment="in custody when it began")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(comment="passed, reopened, or incomplete: a shard was given up")
    measured: Mapped[int] = mapped_column(server_default="0", comment="requests, once it has ended")
    reopened: Mapped[int] = mapped_column(server_default="0", comment="requests that came back")
    reasons: Mapped[list[str]] = mapped_column(server_default="{}", comment="why shards were given up")

    version: Mapped[Version] = relationship()
    model: Mapped[Model] = relationship()
    shards: Mapped[list["RecheckShard"]] = relationship(order_by="RecheckShard.first_seq", viewonly=True)


class RecheckShard(Base):
    """A part of a recheck: the requests whose `seq` lies in a range. A lease and a fence as for jobs.

    It is deleted when its recheck ends.
    """

    __tablename__ = "recheck_shards"
    __table_args__ = (
        Index("ix_recheck_shards_recheck_id", "recheck_id", "first_seq"),
        Index("ix_recheck_shards_open", "created_at", "first_seq", postgresql_where=text("finished_at IS NULL")),
        CheckConstraint("reason ~ '^[A-Za-z_]{1,64}$'", name="reason_is_a_code"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    recheck_id: Mapped[UUID] = mapped_column(ForeignKey("rechecks.id"))
    first_seq: Mapped[int] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0", comment="a lost worker's is not one")
    losses: Mapped[int] = mapped_column(server_default="0", comment="workers lost")
    outgrew: Mapped[int | None] = mapped_column(BigInteger, comment="bytes of the largest slot that was too small")
    not_before: Mapped[datetime | None] = mapped_column(comment="back-off after a failed attempt")
    measured: Mapped[int] = mapped_column(server_default="0", comment="requests that were measured")
    came_back: Mapped[list[str]] = mapped_column(server_default="{}", comment="refs of those over a limit")
    reason: Mapped[str | None] = mapped_column(comment="why it was given up")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    recheck: Mapped[Recheck] = relationship(viewonly=True)
