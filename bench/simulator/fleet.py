"""The compute workers: they look for jobs, work on them, die, and are started and ended with the work."""

import random
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from bench.simulator.clock import START
from bench.simulator.events import Events
from bench.simulator.measures import Meter, Watch
from bench.simulator.steps import Step
from bench.simulator.work import Work
from service.bootstrap import Services
from service.db import jobs, leases
from service.domain.errors import LostLease
from service.domain.states import COMPUTE_STAGES
from service.lease import Lease, claim_job

START_SECONDS = 60  # from the decision to start a worker until it looks for work
CHART = Path(__file__).parents[2] / "docker" / "chart" / "templates" / "compute.yaml"


@dataclass(frozen=True)
class FleetOptions:
    """How many workers there are, and how they come and go.

    Attributes:
        workers: How many at most.
        scaling: "fixed": they always run, and an idle one looks for work. "keda": the chart's query starts them, and
            each ends when nothing is left.
        deaths_per_hour: How often a worker is killed without warning.
        polling_seconds: Between two of the chart's queries.
        seed: Of the deaths.
    """

    workers: int
    scaling: str = "fixed"
    deaths_per_hour: float = 0.0
    polling_seconds: float = 15.0
    seed: int = 0


@dataclass(eq=False)
class Worker:
    """A compute worker with one slot. It dies at `dies_at`, in seconds since the start."""

    began_at: float
    dies_at: float
    is_alive: bool = True
    lease: Lease | None = None
    claimed_at: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def next_look(self, now: float, interval: float) -> float:
        """When an idle worker looks for work by itself, which it does at each interval since its start."""
        return self.began_at + ((now - self.began_at) // interval + 1) * interval


class Fleet:
    """All compute workers."""

    def __init__(self, options: FleetOptions, events: Events, meter: Meter, watch: Watch, work: Work) -> None:
        """Begin with no worker. `services` is to be set before the first one is started."""
        self.options, self._events, self._meter, self._watch, self._work = options, events, meter, watch, work
        self._drawn = random.Random(options.seed)
        self._idle: dict[Worker, None] = {}  # in the order in which they became idle
        self._starting = 0
        self._query = text(_chart_query())
        self.services: Services
        self.deaths, self.deaths_with_job = 0, 0

    def begin(self) -> None:
        """Start the workers, or begin to ask whether there is work for them."""
        if self.options.scaling == "fixed":
            for _ in range(self.options.workers):
                self._start_worker()
        else:
            self._events.every(self.options.polling_seconds, self._scale)

    def wake(self, _job_id: UUID | None, expires: float) -> None:
        """A message: there may be work. An idle worker looks; if nobody is idle, whoever ends a job does."""
        if self._idle and expires >= self._events.clock.seconds:
            self._look(next(iter(self._idle)))

    def _scale(self) -> None:
        """Ask for the claimable jobs, and start as many workers, as KEDA's strategy `accurate` does."""
        with self._meter.timed("scaling query"), self.services.db.reading() as session:
            claimable = session.scalar(self._query)
        wanted, running = min(claimable or 0, self.options.workers), self._watch.alive + self._starting
        missing = min(wanted - self._starting, self.options.workers - running)
        for _ in range(max(0, missing)):
            self._start_soon()

    def _start_soon(self) -> None:
        """Start a worker, which takes a while."""
        self._starting += 1

        def start() -> None:
            self._starting -= 1
            self._start_worker()

        self._events.after(START_SECONDS, start)

    def _start_worker(self) -> None:
        """A worker starts, and looks for work."""
        now, rate = self._events.clock.seconds, self.options.deaths_per_hour / 3600
        worker = Worker(now, now + self._drawn.expovariate(rate) if rate else float("inf"))
        if rate:
            self._events.after(worker.dies_at - now, partial(self._die, worker))
        self._watch.change(alive=1)
        self._look(worker)

    def _look(self, worker: Worker) -> None:
        """Claim the most urgent job; without one the worker is idle, or ends."""
        self._idle.pop(worker, None)
        with self._meter.timed("claim") as operation:
            lease = claim_job(self.services, None, COMPUTE_STAGES)
            if lease is None:
                operation.name = "claim, no job"
        if lease is None:
            if self.options.scaling == "fixed":
                self._idle[worker] = None
            else:
                worker.is_alive = False
                self._watch.change(alive=-1)
            return
        worker.lease, worker.claimed_at = lease, self._events.clock.seconds
        self._watch.change(busy=1)
        worker.steps = self._work.claimed(self.services, lease)
        self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        """Plan the next thing that a worker writes."""
        lease, (seconds, name, write) = worker.lease, worker.steps.pop(0)
        assert lease is not None

        def reach() -> None:
            if not worker.is_alive or worker.lease is not lease:
                return
            try:
                with self._meter.timed(name):
                    write()
            except LostLease:
                self._let_go(worker)
                return
            if worker.steps:
                self._go_on(worker)
            else:
                self._let_go(worker)

        self._beat(worker, lease, seconds)
        self._events.after(seconds, reach)

    def _beat(self, worker: Worker, lease: Lease, seconds: float) -> None:
        """Extend a lease for what its worker does in the next seconds, or until it dies.

        A worker beats four times in each lease's length since the claim, as `Lease.keep` does. The last beat of the
        next seconds is written now, with the lease that it will leave behind. Nobody can see the difference: as long
        as the worker lives, its lease has not run out.
        """
        now, length = self._events.clock.seconds, self.services.settings.lease_seconds
        interval, end = length / 4, min(now + seconds, worker.dies_at)
        beats = int((end - worker.claimed_at) // interval) - int((now - worker.claimed_at) // interval)
        if not beats:
            return
        last = worker.claimed_at + (end - worker.claimed_at) // interval * interval
        settings = self.services.settings.model_copy(update={"lease_seconds": last - now + length})
        folded = Lease(replace(self.services, settings=settings), lease.job_id, lease.fence)
        lease.steps = folded.steps = lease.steps + 1
        with self._meter.timed("heartbeat"):
            folded.beat()
        self._meter.counted["heartbeat"] += beats - 1

    def _let_go(self, worker: Worker) -> None:
        """A worker holds its job no more, and looks for the next one."""
        worker.lease = None
        self._watch.change(busy=-1)
        self._look(worker)

    def _die(self, worker: Worker) -> None:
        """A worker is killed. Nobody is told: its lease runs out."""
        if not worker.is_alive:
            return
        worker.is_alive = False
        self._idle.pop(worker, None)
        self.deaths += 1
        self._watch.change(alive=-1)
        if worker.lease is not None:
            self.deaths_with_job += 1
            self._watch.change(busy=-1)
            self._plan_return(worker.lease)
        if self.options.scaling == "fixed":
            self._start_soon()

    def _plan_return(self, lease: Lease) -> None:
        """Plan for the moment at which a dead worker's job can be claimed: an idle worker's next look gets it."""
        with self.services.db.reading() as session:
            job = jobs.by_id(session, lease.job_id)
        assert job is not None
        assert job.lease_expires_at is not None
        claimable_at = job.lease_expires_at + timedelta(seconds=leases.pause_after(job.losses), milliseconds=1)

        def become_claimable() -> None:
            if not self._work.is_lost(self.services, lease):
                return
            self._work.add_claimable(lease.job_id)
            now, interval = self._events.clock.seconds, self.services.settings.sweep_seconds
            if self._idle:
                first = min(self._idle, key=lambda worker: worker.next_look(now, interval))
                self._events.after(first.next_look(now, interval) - now, partial(self._look_if_idle, first))

        self._events.after((claimable_at - START).total_seconds() - self._events.clock.seconds, become_claimable)

    def _look_if_idle(self, worker: Worker) -> None:
        """The look that was planned, if the worker has got no job meanwhile."""
        if worker in self._idle:
            self._look(worker)


def _chart_query() -> str:
    """The query of the Helm chart by which Kubernetes starts workers."""
    after = CHART.read_text().split("query: >-\n")[1]
    return after.split("authenticationRef")[0]
