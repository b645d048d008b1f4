"""A reference plan for the same requests. Where it misses no deadline, no scheduler misses fewer.

It is a heuristic, not the best of all plans: where it misses some, a better plan may exist. It gives a free worker the
model with the earliest deadline, with that model's earliest deadlines, as the service does. It fills the batch at that
moment. It loses no worker and needs no sweep and no message. The service's rules hold: a model has one job at a time, a
job holds at most a batch, and nobody stops a job that runs.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from bench.simulator.arrivals import Arrival
from bench.simulator.costs import Costs, luck

WORKER_IS_FREE, MODEL_IS_FREE = 0, 1


def missed(arrivals: Sequence[Arrival], ends: Sequence[float | None]) -> set[int]:
    """The numbers of the requests that end after their deadline, or not at all; of those that have an end listed."""
    return {
        number
        for number, (arrival, end) in enumerate(zip(arrivals, ends, strict=False))
        if end is None or end > arrival.due
    }


class Plan:
    """Earliest deadline first."""

    def __init__(
        self, arrivals: Sequence[Arrival], workers: int, batch: int, costs: Costs, *, earlier: int, seed: int
    ) -> None:
        """Plan for these requests, which are in the order in which they arrive."""
        self._arrivals, self._batch, self._costs, self._seed = arrivals, batch, costs, seed
        self._free = workers
        self._pending: dict[int, list[tuple[float, int]]] = defaultdict(list)  # model -> (due, number), a heap
        self._version: dict[int, int] = defaultdict(int)
        self._earlier: dict[int, int] = defaultdict(lambda: earlier)
        self._running: set[int] = set()
        self._ready: list[tuple[float, int]] = []  # (due, model), a heap with entries that no longer hold
        self._events: list[tuple[float, int, int, int]] = []  # (at, kind, model, records)
        self._ends = [float("inf")] * len(arrivals)

    def ends(self) -> list[float]:
        """For each request the second at which it is fulfilled."""
        for number, arrival in enumerate(self._arrivals):
            self._until(arrival.at)
            heapq.heappush(self._pending[arrival.model], (arrival.due, number))
            self._offer(arrival.model)
            self._assign(arrival.at)
        self._until(float("inf"))
        assert max(self._ends, default=0) < float("inf"), "a request was left over"
        return self._ends

    def _until(self, limit: float) -> None:
        """Let everything happen that happens before a moment."""
        while self._events and self._events[0][0] <= limit:
            at, kind, model, records = heapq.heappop(self._events)
            if kind == WORKER_IS_FREE:
                self._free += 1
            else:
                self._running.discard(model)
                self._earlier[model] += records
                self._offer(model)
            self._assign(at)

    def _offer(self, model: int) -> None:
        """Let a model have a job, if it has requests and no job."""
        pending = self._pending[model]
        if model not in self._running and pending:
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
            self._free -= 1
            self._running.add(model)
            heapq.heappush(self._events, (now + seconds, WORKER_IS_FREE, model, 0))
            heapq.heappush(self._events, (end, MODEL_IS_FREE, model, len(numbers)))
