"""What happens next in virtual time, and messages without a broker."""

import heapq
import itertools
from collections.abc import Callable, Mapping
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
