"""Group commit: calls that come while one is under way are made together, by one of those who wait.

A transaction costs a round trip and a flush whether it stores one request or thirty, so under load the flush is shared;
alone, a call is made at once, in its own thread. There is no timer and no thread: who waits longest makes the next.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import psycopg
from sqlalchemy.exc import TimeoutError as Waited

Item = TypeVar("Item")
Result = TypeVar("Result")
# Of these classes one item can be the reason: bad data, a broken constraint, a deadlock. The server has rolled back.
ONE_TO_BLAME = ("22", "23", "40")


class _Call(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item, self.leads = item, False
        self.woken = threading.Event()
        self.result: Result
        self.error: BaseException | None = None


class Together(Generic[Item, Result]):
    """A call of one item, made as a call of several; what is raised for one of them alone is raised to it alone."""

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        size: Callable[[Item], int],
        most: int,
        room: int,
        patience: float,
    ) -> None:
        """Call `call`, all or nothing, with `most` items at once, of `room` bytes if they are more than one."""
        self._call, self._size, self._most, self._room, self._patience = call, size, most, room, patience
        self._lock = threading.Lock()
        self._waiting: deque[_Call[Item, Result]] = deque()
        self._led = False

    def __call__(self, item: Item) -> Result:
        """The result for this item.

        Raises:
            sqlalchemy.exc.TimeoutError: Its turn did not come within `patience` seconds; nothing was done.
            Exception: Whatever `call` raised.
        """
        mine: _Call[Item, Result] = _Call(item)
        with self._lock:
            self._waiting.append(mine)
            if not self._led:
                self._led = True
                self._appoint(mine)
        if not mine.woken.wait(self._patience):
            with self._lock:
                if mine in self._waiting and not mine.leads:
                    self._waiting.remove(mine)
                    raise Waited("others were before this one for too long")
            mine.woken.wait()  # it is under way, for as long as the database allows
        if mine.leads:
            self._lead()
        if mine.error is not None:
            raise mine.error
        return mine.result

    @staticmethod
    def _appoint(call: _Call[Item, Result]) -> None:
        call.leads = True
        call.woken.set()

    def _lead(self) -> None:
        try:
            with self._lock:
                taken = self._next()
            self._make(taken)
        finally:
            with self._lock:
                self._led = bool(self._waiting)
                if self._waiting:
                    self._appoint(self._waiting[0])

    def _next(self) -> list[_Call[Item, Result]]:
        taken = [self._waiting.popleft()]
        room = self._room - self._size(taken[0].item)
        while self._waiting and len(taken) < self._most and (room := room - self._size(self._waiting[0].item)) >= 0:
            taken.append(self._waiting.popleft())
        return taken

    def _make(self, taken: list[_Call[Item, Result]]) -> None:
        try:
            results = self._call([call.item for call in taken])
        except BaseException as error:
            if len(taken) > 1 and isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(ONE_TO_BLAME):
                for call in taken:
                    self._make([call])
                return
            for call in taken:
                call.error = error
        else:
            for call, result in zip(taken, results, strict=True):
                call.result = result
        for call in taken:
            call.woken.set()
