"""One run: a server, models, requests, workers, and what came of it."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from uuid import UUID

import psutil
from sqlalchemy import text

from bench.server import temporary_services
from bench.simulator import clock as virtual
from bench.simulator.arrivals import Arrival, Demand, End, Intake, analyse, make_keys, make_models, read_ends
from bench.simulator.clock import Clock
from bench.simulator.control import Control
from bench.simulator.costs import Costs
from bench.simulator.events import Events, Meter, VirtualQueue
from bench.simulator.fleet import Fleet, FleetOptions
from bench.simulator.watch import Watch
from bench.simulator.work import Work
from service.bootstrap import Services
from service.db import jobs
from service.observability import logging
from service.steps.upkeep.sweep import wake_lost_work

TRANSACTIONS = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")


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
        keys: API keys that submit requests, in turn.
        control_tasks: What the control workers do at once.
        sweep_seconds: The setting.
        full_every: Of so many jobs one is written by the workers' own steps, and the others by `short_steps`.
        tick_seconds: Requests are inserted so often.
        horizon: The second at which the run ends at the latest.
    """

    demand: Demand
    fleet: FleetOptions
    costs: Costs
    batch: int = 32
    max_wait_seconds: float = 900
    earlier: int = 0
    keys: int = 3
    control_tasks: int = 16
    sweep_seconds: float = 30
    full_every: int = 1
    tick_seconds: float = 60
    horizon: float = 40 * 86_400


@dataclass
class Result:
    """What came of a run.

    Attributes:
        options: What was simulated.
        arrivals: The requests, by their numbers.
        ends: How they ended, by their numbers; of those that have arrived.
        stages: Stage -> jobs that are in it at the end.
        attempts: How often a job was claimed by a compute worker.
        seconds: Virtual seconds.
        wall_seconds: Real seconds.
        cpu_seconds: Of the server's processes, real, less the insertion of requests.
        transactions: That the server counted, less the simulator's own.
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
    cpu_seconds: float
    transactions: int
    sizes: dict[UUID, int] = field(default_factory=dict)


def simulate(options: Options, say: Callable[[str], None] = lambda _: None) -> Result:
    """Run a simulation on a PostgreSQL server of its own; `say` gets a line for each virtual hour."""
    logging.configure("ERROR")
    clock = Clock()
    began = time.perf_counter()
    with temporary_services(prepare=virtual.install) as (services, _), virtual.virtual_datetime(clock):
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
        self.work = Work(
            costs,
            models,
            self.watch,
            self.meter,
            earlier=options.earlier,
            full_every=options.full_every,
            seed=seed,
        )
        self.control = Control(self.events, self.meter, costs, options.control_tasks)
        self.fleet = Fleet(options.fleet, self.events, self.meter, self.watch, self.work)
        receivers = {"batch": self.control.batch, "certify": self.control.certify}
        if options.fleet.scaling == "fixed":
            receivers["unlearn"] = self.fleet.wake
        self.services = replace(services, queue=VirtualQueue(self.events, receivers))
        self.control.services = self.fleet.services = self.services
        self.control.batched, self.control.published = self.work.batched, self._published
        self.control.is_short = self.work.is_short
        self.intake = Intake(self.services, models, make_keys(services, options.keys))
        self.server = psutil.Process(_backend(services)).parent()
        self.inserted, self.insert_cpu = 0, 0.0
        self.say, self.began = say, time.perf_counter()

    def finish(self, began: float) -> Result:
        """Run to the end."""
        options = self.options
        self.events.every(options.tick_seconds, self._insert)
        self.events.every(options.sweep_seconds, self._sweep)
        self.events.every(3600, self._report)
        self.fleet.begin()
        cpu, transactions = self._cpu(), self._transactions()
        self.events.run(options.horizon, self._is_over)
        self.watch.change()
        cpu, transactions = self._cpu() - cpu - self.insert_cpu, self._transactions() - transactions
        with self.services.db.reading() as session:
            stages = jobs.counts(session)
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
            cpu,
            transactions,
            self.work.sizes,
        )

    def _is_over(self) -> bool:
        """Whether every request has arrived and ended, and nobody runs for nothing."""
        is_idle = self.options.fleet.scaling == "fixed" or not self.watch.alive
        return self.inserted == len(self.arrivals) and not self.watch.waiting and is_idle

    def _insert(self) -> None:
        """Insert the requests that have arrived, and wake batching for models without a job."""
        last = self.inserted
        while last < len(self.arrivals) and self.arrivals[last].at <= self.clock.seconds:
            last += 1
        arrived = self.arrivals[self.inserted : last]
        if not arrived:
            return
        before = self._cpu()
        self.intake.insert(self.inserted, arrived)
        if not self.inserted or self.inserted.bit_length() < last.bit_length():
            analyse(self.services)
        self.insert_cpu += self._cpu() - before
        self.inserted = last
        self.watch.change(waiting=len(arrived))
        woken = {self.models[arrival.model] for arrival in arrived} - self.work.active
        for model_id in sorted(woken):
            self.services.queue.wake("batch", model_id)
        self.meter.counted["batch, no job"] += len(arrived) - len(woken)

    def _sweep(self) -> None:
        """The sweep."""
        with self.meter.timed("sweep"):
            wake_lost_work(self.services)

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

    def _cpu(self) -> float:
        """CPU seconds of the server and all its processes, those that have ended included."""
        assert self.server is not None
        own = self.server.cpu_times()
        total: float = own.user + own.system + own.children_user + own.children_system
        for child in self.server.children():
            with suppress(psutil.NoSuchProcess):  # it has ended: its parent has counted it, now or soon
                times = child.cpu_times()
                total += times.user + times.system
        return total

    def _transactions(self) -> int:
        """The transactions that the server has counted."""
        with self.services.db.reading() as session:
            return session.scalar(TRANSACTIONS) or 0


def _backend(services: Services) -> int:
    """The process of a connection to the server."""
    with services.db.reading() as session:
        return session.scalar(text("SELECT pg_backend_pid()")) or 0
