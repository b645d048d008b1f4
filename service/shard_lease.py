"""Leases of the shards of rechecks: as leases of jobs are, without stages and without a log."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from service.bootstrap import Services
from service.db import compute_workers, jobs, rechecks
from service.db.recheck_tables import RecheckShard
from service.domain.errors import LostLease
from service.domain.slot import Slot
from service.lease import BACKOFF_FACTOR, TOO_LARGE, Lease, kept, new_owner

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
        self._end(lambda shard: rechecks.release(shard, delay_seconds=delay_seconds))

    def lose(self, reason: str) -> None:
        """Count an attempt that something outside ended as a loss, and pause."""

        def end(shard: RecheckShard) -> None:
            shard.losses += 1
            if shard.losses >= self.services.settings.max_losses:
                rechecks.finish(shard, reason=reason)
            else:
                rechecks.release(shard, delay_seconds=jobs.pause_after(shard.losses))

        self._end(end)

    def fail(self, reason: str, *, permanent: bool = False) -> None:
        """End a failed attempt: back off, or give the shard up after the last attempt or a permanent error.

        A shard that is too large for this slot is left to a living worker with a larger one.
        """
        settings = self.services.settings
        reason = reason if CODE.fullmatch(reason) else "failed"

        def end(shard: RecheckShard) -> None:
            if reason == TOO_LARGE and self.slot.memory and self._is_any_larger():
                shard.outgrew = max(shard.outgrew or 0, self.slot.memory)
                rechecks.release(shard, delay_seconds=settings.sweep_seconds)
            elif permanent or shard.attempts >= settings.max_attempts:
                rechecks.finish(shard, reason=reason)
            else:
                delay = settings.retry_seconds * BACKOFF_FACTOR ** (shard.attempts - 1)
                rechecks.release(shard, delay_seconds=delay, count=True)

        self._end(end)

    def _is_any_larger(self) -> bool:
        """Whether a living worker has a larger slot of this kind."""
        with self.services.db.reading() as session:
            largest = compute_workers.largest_slot(session, self.services.settings.sweep_seconds, self.slot)
        return largest > (self.slot.memory or 0)

    def store(self, measured: int, came_back: list[str]) -> None:
        """End the shard with what was measured.

        Raises:
            LostLease: The fence moved on.
        """
        with self.services.db.transaction() as session:
            shard = rechecks.owned(session, self.job_id, self.fence)
            shard.measured, shard.came_back = measured, came_back
            rechecks.finish(shard)

    def _end(self, change: Callable[[RecheckShard], None]) -> None:
        """Change the shard, which this lease gives up; nothing is done if it is lost already."""
        with suppress(LostLease), self.services.db.transaction() as session:
            change(rechecks.owned(session, self.job_id, self.fence))


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
