"""How often the database was asked, what that took, and how busy the workers were."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.simulator.clock import Clock


@dataclass
class Operation:
    """An operation under way; whoever runs it may give it another name."""

    name: str


class Meter:
    """How often each operation ran, in how many real seconds; and how often it was only counted."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.done: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.counted: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[Operation]:
        """Count an operation and its time."""
        operation, began = Operation(name), time.perf_counter()
        try:
            yield operation
        finally:
            self.seconds[operation.name] += time.perf_counter() - began
            self.done[operation.name] += 1

    def mean(self, name: str) -> float:
        """Seconds of an operation; 0 if it never ran."""
        return self.seconds[name] / self.done[name] if self.done[name] else 0.0


class Watch:
    """Worker-seconds, added up at each change.

    Attributes:
        alive: Workers that run now.
        busy: Those of them that hold a job.
        claimable: Jobs that wait for a worker.
        waiting: Requests that were accepted and have not ended.
        jobs_wait: Seconds while a job waits for a worker, and the worker-seconds with a job in them.
        requests_wait: The same while a request has not ended.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin with nobody."""
        self._clock, self._last = clock, 0.0
        self.alive = self.busy = self.claimable = self.waiting = 0
        self.seconds = {"alive": 0.0, "busy": 0.0, "idle": 0.0}
        self.jobs_wait, self.requests_wait = {"busy": 0.0, "time": 0.0}, {"busy": 0.0, "time": 0.0}
        self.alive_at_most = self.busy_at_most = 0

    def change(self, *, alive: int = 0, busy: int = 0, claimable: int = 0, waiting: int = 0) -> None:
        """Add up what was until now, then change the numbers."""
        passed, self._last = self._clock.seconds - self._last, self._clock.seconds
        self.seconds["alive"] += passed * self.alive
        self.seconds["busy"] += passed * self.busy
        self.seconds["idle"] += passed * (self.alive - self.busy)
        for is_now, total in ((self.claimable, self.jobs_wait), (self.waiting, self.requests_wait)):
            if is_now:
                total["busy"] += passed * self.busy
                total["time"] += passed
        self.alive, self.busy = self.alive + alive, self.busy + busy
        self.claimable, self.waiting = self.claimable + claimable, self.waiting + waiting
        assert min(self.alive, self.busy, self.claimable, self.waiting) >= 0, vars(self)
        self.alive_at_most, self.busy_at_most = max(self.alive_at_most, self.alive), max(self.busy_at_most, self.busy)
