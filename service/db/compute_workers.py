"""The compute workers that live, and what their slots offer: each says so itself, without a broker."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.db.base import Base
from service.domain.slot import Slot

LOOKS = 4


class ComputeWorker(Base):
    """A compute worker, as it said last."""

    __tablename__ = "compute_workers"

    name: Mapped[str] = mapped_column(primary_key=True, comment="host/process/random part")
    slots: Mapped[int] = mapped_column(comment="jobs that it runs at once")
    on_cuda: Mapped[bool] = mapped_column(comment="whether it computes on CUDA devices")
    memory: Mapped[int | None] = mapped_column(BigInteger, comment="bytes of its largest slot; null: unknown")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


def note(session: Session, name: str, offers: Sequence[Slot]) -> None:
    """A worker lives, and has these slots."""
    memory = max((slot.memory for slot in offers if slot.memory is not None), default=None)
    offered = {"slots": len(offers), "on_cuda": any(slot.on_cuda for slot in offers), "memory": memory}
    added = insert(ComputeWorker).values(name=name, **offered)
    session.execute(added.on_conflict_do_update(index_elements=["name"], set_=offered | {"seen_at": func.now()}))


def living(session: Session, sweep_seconds: float) -> list[ComputeWorker]:
    """The workers that were seen in the last LOOKS sweep intervals, by name."""
    seen = ComputeWorker.seen_at > func.now() - timedelta(seconds=LOOKS * sweep_seconds)
    return list(session.scalars(select(ComputeWorker).where(seen).order_by(ComputeWorker.name)))


def slots(session: Session, sweep_seconds: float) -> int:
    """How many jobs the living workers run at once."""
    return sum(worker.slots for worker in living(session, sweep_seconds))


def largest_slot(session: Session, sweep_seconds: float, like: Slot | None = None) -> int:
    """The bytes of the largest slot of a living worker, of those that compute on what a slot does; 0 if none says."""
    workers = [one for one in living(session, sweep_seconds) if like is None or one.on_cuda == like.on_cuda]
    return max((worker.memory or 0 for worker in workers), default=0)


def forget(session: Session, name: str) -> None:
    """A worker has ended."""
    session.execute(delete(ComputeWorker).where(ComputeWorker.name == name))


def forget_unseen(session: Session) -> None:
    """Forget the workers that were not seen for a day."""
    session.execute(delete(ComputeWorker).where(ComputeWorker.seen_at < func.now() - timedelta(days=1)))
