"""Leases of the shards of rechecks: as leases of jobs are, without stages and without a log."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import leases, rechecks
from service.db.recheck_tables import RecheckShard
from service.domain.errors import LostLease
from service.domain.slot import Slot
from service.lease import TOO_LARGE, Lease, backoff_seconds, kept, new_owner, outgrow

CODE = re.compile(r"[A-Za-z_]{1,64}")


class ShardLease(Lease):
    """A claimed shard. Its worker has failed if it makes no step for too long."""

    def __init__(self, services: Services, shard_id: UUID, fence: int, slot: Slot | None = None) -> None:
        """Hold a shard under `fence`, for a worker's slot."""
        super().__init__(services, shard_id, fence, slot)
        self._steps_seen, self._step_at = 0, time.monotonic()

    def beat(self) -> None:
        """Extend the lease once; set `lost` if the database refuses, or if nothing was done for too long."""
        settings, now = self.services.settings, time.monotonic()
        if self.steps != self._steps_seen:
            self._steps_seen, self._step_at = self.steps, now
        if now - self._step_at > settings.stall_seconds:
            self.fail("stalled")
            self.lost.set()
            return
        with self.services.db.transaction() as session:
            held = rechecks.heartbeat(session, self.job_id, self.fence, lease_seconds=settings.lease_seconds)
        if not held:
            self.lost.set()

    def hand_back(self, *, delay_seconds: float = 0) -> None:
        """Release the shard untouched, because this process stops or it must wait; this attempt does not count."""
        self._end(lambda _, shard: rechecks.release(shard, delay_seconds=delay_seconds))

    def lose(self, reason: str) -> None:
        """Count an attempt that something outside ended as a loss, and pause."""

        def end(_: Session, shard: RecheckShard) -> None:
            shard.losses += 1
            if shard.losses >= self.services.settings.max_losses:
                rechecks.finish(shard, reason=reason)
            else:
                rechecks.release(shard, delay_seconds=leases.pause_after(shard.losses))

        self._end(end)

    def fail(self, reason: str, *, permanent: bool = False) -> None:
        """End a failed attempt: back off, or give the shard up after the last attempt or a permanent error.

        A shard that is too large for this slot is left to a living worker with a larger one.
        """
        settings = self.services.settings
        reason = reason if CODE.fullmatch(reason) else "failed"

        def end(session: Session, shard: RecheckShard) -> None:
            if reason == TOO_LARGE and outgrow(self.services, session, shard, self.slot):
                rechecks.release(shard, delay_seconds=settings.sweep_seconds)
            elif permanent or shard.attempts >= settings.max_attempts:
                rechecks.finish(shard, reason=reason)
            else:
                delay = backoff_seconds(self.services, shard.attempts)
                rechecks.release(shard, delay_seconds=delay, count=True)

        self._end(end)

    def store(self, measured: int, came_back: list[str]) -> None:
        """End the shard with what was measured.

        Raises:
            LostLease: The fence moved on.
        """
        with self.services.db.transaction() as session:
            shard = rechecks.owned(session, self.job_id, self.fence)
            shard.measured, shard.came_back = measured, came_back
            rechecks.finish(shard)

    def _end(self, change: Callable[[Session, RecheckShard], None]) -> None:
        """Change the shard, which this lease gives up; nothing is done if it is lost already."""
        with suppress(LostLease), self.services.db.transaction() as session:
            change(session, rechecks.owned(session, self.job_id, self.fence))


@contextmanager
def hold_shard(services: Services, slot: Slot | None = None) -> Iterator[ShardLease | None]:
    """Claim a shard for a slot and keep its lease inside the block; None if there is none."""
    memory = slot.memory if slot else None
    with services.db.transaction() as session:
        claimed = rechecks.claim(session, new_owner(), memory, lease_seconds=services.settings.lease_seconds)
    if claimed is None:
        yield None
        return
    lease = ShardLease(services, *claimed, slot)
    with kept(lease):
        yield lease
