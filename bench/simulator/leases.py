"""Heartbeats of a worker that holds a job."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bench.simulator.events import Events, Meter
from service.bootstrap import Services
from service.lease import Lease

if TYPE_CHECKING:
    from bench.simulator.fleet import Worker


class Heartbeats:
    """Extends leases, four times in each lease's length since the claim, as `Lease.keep` does.

    Nobody can see a difference between all heartbeats until the next phase, and one now with the lease that the last
    of them leaves behind: as long as the worker lives, its lease has not run out. When it is killed is known here.
    """

    def __init__(self, events: Events, meter: Meter, *, is_each_written: bool) -> None:
        """Write each heartbeat at its time, or the last one of a phase at once."""
        self._events, self._meter, self._is_each_written = events, meter, is_each_written
        self._claimed_at: dict[Lease, float] = {}

    def begin(self, worker: "Worker") -> None:
        """A worker has claimed a job."""
        assert worker.lease is not None
        self._claimed_at[worker.lease] = self._events.clock.seconds

    def cover(self, services: Services, worker: "Worker", seconds: float) -> None:
        """Extend a worker's lease for what it does in the next seconds, or until it dies."""
        lease, now, interval = worker.lease, self._events.clock.seconds, services.settings.lease_seconds / 4
        assert lease is not None
        since, end = self._claimed_at[lease], min(now + seconds, worker.dies_at)
        if not worker.steps and worker.dies_at > now + seconds:
            del self._claimed_at[lease]
        first, last = int((now - since) // interval) + 1, int((end - since) // interval)
        if last < first:
            return
        if self._is_each_written:
            for number in range(first, last + 1):
                self._events.after(since + number * interval - now, partial(self._beat, worker, lease))
            return
        until = since + last * interval - now + services.settings.lease_seconds
        longer = replace(services, settings=services.settings.model_copy(update={"lease_seconds": until}))
        folded = Lease(longer, lease.job_id, lease.fence)
        lease.steps = folded.steps = lease.steps + 1
        with self._meter.timed("heartbeat"):
            folded.beat()
        self._meter.counted["heartbeat"] += last - first

    def _beat(self, worker: "Worker", lease: Lease) -> None:
        """One heartbeat of a worker that still holds the job."""
        if worker.is_alive and worker.lease is lease:
            lease.steps += 1
            with self._meter.timed("heartbeat"):
                lease.beat()
