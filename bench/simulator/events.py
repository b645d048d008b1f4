"""What happens next in virtual time, what it cost the database, and messages without a broker."""

import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from bench.simulator.clock import Clock
from service.queue import Queue

MESSAGE_SECONDS = 0.05  # from the commit to the worker that the message wakes


class Events:
    """Actions by their virtual time; those of one moment in the order in which they were planned."""

    def __init__(self, clock: Clock) -> None:
        """Plan on this clock."""
        self.clock = clock
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Plan an action so many seconds from now."""
        heapq.heappush(self._planned, (self.clock.seconds + max(0.0, seconds), next(self._numbers), action))

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Plan an action again and again."""

        def repeat() -> None:
            action()
            self.after(seconds, repeat)

        self.after(seconds, repeat)

    def run(self, until: float, is_over: Callable[[], bool]) -> None:
        """Do what is planned, until it is over or virtual second `until`."""
        while self._planned and not is_over():
            at, _, action = heapq.heappop(self._planned)
            if at > until:
                self.clock.move(until)
                return
            self.clock.move(at)
            action()


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


class VirtualQueue(Queue):
    """The queue's interface. A message arrives after `MESSAGE_SECONDS`; equal ones on their way are one."""

    def __init__(self, events: Events, receivers: Mapping[str, Callable[[UUID | None, float], None]]) -> None:
        """Hand messages to the receiver of their step: called with the id, and the second at which it expires."""
        self._events, self._receivers = events, receivers
        self._sent: set[tuple[str, UUID | None]] = set()

    def wake(self, step: str, identifier: UUID | None = None, *, expires: float = 600) -> None:
        """Say that a step has work; steps that are not simulated have none."""
        receiver, message = self._receivers.get(step), (step, identifier)
        if receiver is None or message in self._sent:
            return
        self._sent.add(message)
        last = self._events.clock.seconds + expires

        def arrive() -> None:
            self._sent.discard(message)
            receiver(identifier, last)

        self._events.after(MESSAGE_SECONDS, arrive)

    def close(self) -> None:
        """Nothing is open."""
