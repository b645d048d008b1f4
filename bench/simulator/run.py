"""One run: a server, models, requests, workers, and what came of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select

from bench.server import temporary_services
from bench.simulator import clock as virtual
from bench.simulator.arrivals import Arrival, Demand, End, Intake, analyse, make_keys, make_models, read_ends
from bench.simulator.clock import Clock
from bench.simulator.control import Control
from bench.simulator.costs import Costs
from bench.simulator.events import Events, VirtualQueue
from bench.simulator.fleet import Fleet, FleetOptions
from bench.simulator.measures import Meter, Watch
from bench.simulator.work import Work
from service.bootstrap import Services
from service.db import jobs
from service.db.tables import JobEvent
from service.domain.states import Stage
from service.steps.upkeep.sweep import wake_lost_work

API_KEYS = 3  # they submit the requests, in turn
TICK_SECONDS = 60  # between two insertions of what has arrived


@dataclass(frozen=True)
class Options:
    """What is simulated.

    Attributes:
        demand: How requests arrive.
        fleet: The compute workers.
        costs: How long jobs take.
        batch: The policy's `max_batch_records`.
        max_wait_seconds: The policy's.
        earlier: Requests that earlier versions of each model have fulfilled before the run.
        control_tasks: What the control workers do at once.
        sweep_seconds: The setting.
        horizon: The second at which the run ends at the latest.
    """

    demand: Demand
    fleet: FleetOptions
    costs: Costs
    batch: int = 32
    max_wait_seconds: float = 900
    earlier: int = 0
    control_tasks: int = 16
    sweep_seconds: float = 30
    horizon: float = 40 * 86_400


@dataclass
class Result:
    """What came of a run.

    Attributes:
        options: What was simulated.
        arrivals: The requests, by their numbers.
        ends: How they ended, by their numbers; of those that have arrived.
        stages: Stage -> jobs that are in it at the end.
        meter: The operations on the database.
        watch: The workers' time.
        fleet: The compute workers.
        control: The control workers.
        seconds: Virtual seconds.
        wall_seconds: Real seconds.
        last_event: When the last event of a job was written, by the clock of the database; None if there was none.
        sizes: Job -> how many requests it holds; of those that were claimed.
        costs: Job -> the seconds of a worker who is not killed; of those that were claimed.
    """

    options: Options
    arrivals: list[Arrival]
    ends: list[End]
    stages: dict[str, int]
    meter: Meter
    watch: Watch
    fleet: Fleet
    control: Control
    seconds: float
    wall_seconds: float
    last_event: datetime | None
    sizes: dict[UUID, int]
    costs: dict[UUID, float]


def simulate(options: Options, say: Callable[[str], None] = lambda _: None) -> Result:
    """Run a simulation on a PostgreSQL server of its own; `say` gets a line for each virtual hour."""
    clock = Clock()
    began = time.perf_counter()
    server = temporary_services(prepare=virtual.install, with_broker=False)
    with server as (services, _), virtual.virtual_datetime(clock):
        virtual.attach(services.db, clock)
        settings = services.settings.model_copy(update={"sweep_seconds": options.sweep_seconds})
        run = _Run(options, replace(services, settings=settings), clock, say)
        return run.finish(began)


class _Run:
    """A run under way."""

    def __init__(self, options: Options, services: Services, clock: Clock, say: Callable[[str], None]) -> None:
        """Register models, and plan the first events."""
        self.options, self.clock = options, clock
        self.events, self.meter, self.watch = Events(clock), Meter(), Watch(clock)
        costs, seed = options.costs, options.demand.seed
        policy = {"max_batch_records": options.batch, "max_wait_seconds": options.max_wait_seconds}
        models = make_models(services, options.demand.models, dict(policy), seed)
        self.models, self.arrivals = models, options.demand.arrivals()
        self.work = Work(costs, models, self.watch, earlier=options.earlier, seed=seed)
        self.control = Control(self.events, self.meter, costs, options.control_tasks)
        self.fleet = Fleet(options.fleet, self.events, self.meter, self.watch, self.work)
        receivers = {"batch": self.control.batch, "certify": self.control.certify}
        if options.fleet.scaling == "fixed":
            receivers["unlearn"] = self.fleet.wake
        self.services = replace(services, queue=VirtualQueue(self.events, receivers))
        self.control.services = self.fleet.services = self.services
        self.control.batched, self.control.published = self.work.batched, self._published
        self.intake = Intake(self.services, models, make_keys(services, API_KEYS))
        self.inserted = 0
        self.say, self.began = say, time.perf_counter()

    def finish(self, began: float) -> Result:
        """Run to the end."""
        options = self.options
        self.events.every(TICK_SECONDS, self._insert)
        self.events.every(options.sweep_seconds, self._sweep)
        self.events.every(3600, self._report)
        self.fleet.begin()
        self.events.run(options.horizon, self._is_over)
        self.watch.change()
        with self.services.db.reading() as session:
            stages, last_event = jobs.counts(session), session.scalar(select(func.max(JobEvent.at)))
        return Result(
            options,
            self.arrivals,
            read_ends(self.services),
            stages,
            self.meter,
            self.watch,
            self.fleet,
            self.control,
            self.clock.seconds,
            time.perf_counter() - began,
            last_event,
            self.work.sizes,
            self.work.costs,
        )

    def _is_over(self) -> bool:
        """Whether every request has arrived and ended, and nobody runs for nothing."""
        is_idle = self.options.fleet.scaling == "fixed" or not self.watch.alive
        return self.inserted == len(self.arrivals) and not self.watch.waiting and is_idle

    def _insert(self) -> None:
        """Insert the requests that have arrived, and wake batching for models whose job can still take them in."""
        last = self.inserted
        while last < len(self.arrivals) and self.arrivals[last].at <= self.clock.seconds:
            last += 1
        arrived = self.arrivals[self.inserted : last]
        if not arrived:
            return
        self.intake.insert(self.inserted, arrived)
        if not self.inserted or self.inserted.bit_length() < last.bit_length():
            analyse(self.services)
        self.inserted = last
        self.watch.change(waiting=len(arrived))
        woken = {self.models[arrival.model] for arrival in arrived} - self.work.active
        for model_id in sorted(woken):
            self.services.queue.wake("batch", model_id)
        self.meter.counted["batch, no new job"] += len(arrived) - len(woken)

    def _sweep(self) -> None:
        """The sweep. A run in which a job fails ends here: its figures would be of no use."""
        with self.meter.timed("sweep"):
            wake_lost_work(self.services)
        with self.services.db.reading() as session:
            stages = jobs.counts(session)
        if failed := stages.get(Stage.QUARANTINED, 0):
            raise RuntimeError(f"jobs quarantined: {failed}, in virtual hour {self.clock.seconds / 3600:.1f}")

    def _published(self, job_id: UUID) -> None:
        """A version was published: the model may be batched again."""
        self.services.queue.wake("batch", self.work.published(job_id))

    def _report(self) -> None:
        """Say how far it is."""
        watch = self.watch
        self.say(
            f"{self.clock.seconds / 3600:.0f} h, {time.perf_counter() - self.began:.0f} s: {self.inserted} requests,"
            f" {watch.waiting} wait, {watch.claimable} jobs wait, {watch.busy} of {watch.alive} workers busy"
        )
