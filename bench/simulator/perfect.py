"""A perfect scheduler of the same requests: which deadlines can be kept at all?

It gives a free worker the model whose next deadline is the earliest, with that model's earliest deadlines, as the
service does. It knows everything at once, loses no worker and no second, and needs no sweep and no message. The same
rules hold: a model has one job at a time, a job holds at most a batch, and nobody stops a job that runs. There is no
fast way to the very best of all plans. So several are made, which wait for fuller batches for different times. The one
that misses fewest counts.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from bench.simulator.arrivals import Arrival
from bench.simulator.costs import Costs, luck

WAITS = (0.0, 300.0, 900.0, 3600.0)


def best_ends(
    arrivals: Sequence[Arrival], workers: int, batch: int, costs: Costs, *, earlier: int, seed: int
) -> list[float]:
    """For each request the second at which the plan that misses fewest deadlines fulfils it."""
    plans = [Plan(arrivals, workers, batch, costs, wait, earlier=earlier, seed=seed).ends() for wait in WAITS]
    return min(plans, key=lambda ends: len(missed(arrivals, ends)))


def missed(arrivals: Sequence[Arrival], ends: Sequence[float | None]) -> set[int]:
    """The numbers of the requests that end after their deadline, or not at all; of those that have an end listed."""
    return {
        number
        for number, (arrival, end) in enumerate(zip(arrivals, ends, strict=False))
        if end is None or end > arrival.due
    }


class Plan:
    """Earliest deadline first, with a wait for full batches while no deadline is near."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        workers: int,
        batch: int,
        costs: Costs,
        wait: float,
        *,
        earlier: int,
        seed: int,
    ) -> None:
        """Plan for these requests; `wait` is how many seconds a request waits at most until its batch is full."""
        self._arrivals, self._batch, self._costs, self._wait, self._seed = arrivals, batch, costs, wait, seed
        self._free = workers
        self._pending: dict[int, list[tuple[float, int]]] = defaultdict(list)  # model -> (due, number), a heap
        self._oldest: dict[int, float] = {}
        self._version: dict[int, int] = defaultdict(int)
        self._earlier: dict[int, int] = defaultdict(lambda: earlier)
        self._running: set[int] = set()
        self._ready: list[tuple[float, int]] = []  # (due, model), a heap with entries that no longer hold
        self._events: list[tuple[float, int, int, int]] = []  # (at, kind, model, records)
        self._ends = [0.0] * len(arrivals)

    def ends(self) -> list[float]:
        """For each request the second at which it is fulfilled."""
        for number, arrival in enumerate(self._arrivals):
            self._until(arrival.at)
            model = arrival.model
            heapq.heappush(self._pending[model], (arrival.due, number))
            self._oldest.setdefault(model, arrival.at)
            if self._wait and len(self._pending[model]) < self._batch:
                heapq.heappush(self._events, (arrival.at + self._wait, 2, model, 0))
            self._offer(model, arrival.at)
            self._assign(arrival.at)
        self._until(float("inf"))
        return self._ends

    def _until(self, limit: float) -> None:
        """Let everything happen that happens before a moment."""
        while self._events and self._events[0][0] <= limit:
            at, kind, model, records = heapq.heappop(self._events)
            if kind == 0:
                self._free += 1
            elif kind == 1:
                self._running.discard(model)
                self._earlier[model] += records
            self._offer(model, at)
            self._assign(at)

    def _offer(self, model: int, now: float) -> None:
        """Let a model have a job, if it may and its requests have waited for long enough."""
        pending = self._pending[model]
        if model in self._running or not pending:
            return
        if len(pending) >= self._batch or now - self._oldest[model] >= self._wait:
            heapq.heappush(self._ready, (pending[0][0], model))

    def _assign(self, now: float) -> None:
        """Give the free workers the models with the earliest deadlines."""
        while self._free and self._ready:
            due, model = heapq.heappop(self._ready)
            pending = self._pending[model]
            if model in self._running or not pending or pending[0][0] != due:
                continue
            numbers = [heapq.heappop(pending)[1] for _ in range(min(self._batch, len(pending)))]
            self._version[model] += 1
            seconds = self._costs.compute(len(numbers), self._earlier[model])
            seconds *= luck(self._seed, model, self._version[model])
            end = now + seconds + self._costs.control
            for number in numbers:
                self._ends[number] = end
            self._oldest[model] = now if pending else float("inf")
            if not pending:
                del self._oldest[model]
            self._free -= 1
            self._running.add(model)
            heapq.heappush(self._events, (now + seconds, 0, model, 0))
            heapq.heappush(self._events, (end, 1, model, len(numbers)))
