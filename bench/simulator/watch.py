"""How busy the workers are, and while what."""

from bench.simulator.clock import Clock


class Watch:
    """Worker-seconds, added up at each change.

    Attributes:
        alive: Workers that run now.
        busy: Those of them that hold a job.
        claimable: Jobs that wait for a worker.
        waiting: Requests that were accepted and have not ended.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin with nobody."""
        self._clock, self._last = clock, 0.0
        self.alive = self.busy = self.claimable = self.waiting = 0
        self.seconds = {"alive": 0.0, "busy": 0.0, "idle": 0.0}
        self.while_jobs_wait = {"alive": 0.0, "busy": 0.0, "time": 0.0}
        self.while_requests_wait = {"alive": 0.0, "busy": 0.0, "time": 0.0}
        self.alive_at_most = self.busy_at_most = 0

    def change(self, *, alive: int = 0, busy: int = 0, claimable: int = 0, waiting: int = 0) -> None:
        """Add up what was until now, then change the numbers."""
        passed, self._last = self._clock.seconds - self._last, self._clock.seconds
        self.seconds["alive"] += passed * self.alive
        self.seconds["busy"] += passed * self.busy
        self.seconds["idle"] += passed * (self.alive - self.busy)
        for is_now, total in ((self.claimable, self.while_jobs_wait), (self.waiting, self.while_requests_wait)):
            if is_now:
                total["alive"] += passed * self.alive
                total["busy"] += passed * self.busy
                total["time"] += passed
        self.alive, self.busy = self.alive + alive, self.busy + busy
        self.claimable, self.waiting = self.claimable + claimable, self.waiting + waiting
        assert min(self.alive, self.busy, self.claimable, self.waiting) >= 0, vars(self)
        self.alive_at_most, self.busy_at_most = max(self.alive_at_most, self.alive), max(self.busy_at_most, self.busy)


def share(total: dict[str, float]) -> float | None:
    """The busy part of the workers' time; None if there was none."""
    return total["busy"] / total["alive"] if total["alive"] else None
