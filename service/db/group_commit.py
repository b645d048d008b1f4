"""Group commit: calls that come while one is under way are made together, by one of those who wait.

A transaction costs a round trip and a flush whether it stores one request or thirty, so under load the flush is shared;
alone, a call is made at once, in its own thread. There is no timer and no thread: who waits longest makes the next.
What is large goes its own way, so that nobody waits for it.
"""

import copy
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
        self.error: Exception | None = psycopg.OperationalError("whoever stored for all was interrupted")

    def answer(self, result: Result) -> None:
        self.result, self.error = result, None
        self.woken.set()

    def refuse(self, error: Exception, *, shared: bool) -> None:
        # If shared, a copy: through one traceback for all, the texts of one caller could be had by another.
        self.error = copy.copy(error).with_traceback(None) if shared else error
        self.woken.set()


class GroupCommit(Generic[Item, Result]):
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
        """Call `call`, all or nothing, with `most` items of `room` bytes together; a larger one goes alone."""
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
        if self._size(item) > self._room:
            return self._call([item])[0]
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
        with self._lock:
            taken = self._next()
        try:
            self._make(taken)
        finally:
            for call in taken:
                call.woken.set()
            with self._lock:
                self._led = bool(self._waiting)
                if self._waiting:
                    self._appoint(self._waiting[0])

    def _next(self) -> list[_Call[Item, Result]]:
        taken: list[_Call[Item, Result]] = []
        room = self._room
        while self._waiting and len(taken) < self._most and (room := room - self._size(self._waiting[0].item)) >= 0:
            taken.append(self._waiting.popleft())
        return taken

    def _make(self, taken: Sequence[_Call[Item, Result]]) -> None:
        try:
            found = list(zip(taken, self._call([call.item for call in taken]), strict=True))
        except Exception as error:
            if len(taken) > 1 and _is_of_one(error):
                self._make_each(deque(taken))
            else:
                for call in taken:
                    call.refuse(error, shared=len(taken) > 1)
            return
        for call, result in found:
            call.answer(result)

    def _make_each(self, left: deque[_Call[Item, Result]]) -> None:
        while left:
            call = left.popleft()
            self._make([call])
            if call.error is not None and not _is_of_one(call.error):
                while left:  # the database does not get on: each would wait for it in turn
                    left.popleft().refuse(call.error, shared=True)


def _is_of_one(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(ONE_TO_BLAME)
