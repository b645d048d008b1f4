"""Group commit: items that arrive while a call is under way share the next call.

A transaction costs a round trip and a flush whether it stores one request or thirty, so under load the callers share
the flush. One thread makes the calls, one after the other. A caller is a thread that waits, or a coroutine: then no
thread waits for the database. There is no timer. A large item goes alone, so that no other item waits for it.
"""

import asyncio
import contextlib
import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import psycopg
from sqlalchemy import exc

Item = TypeVar("Item")
Result = TypeVar("Result")
# SQLSTATE classes of errors that one item can cause (bad data, constraint, deadlock); the server has rolled back.
ITEM_ERRORS = ("22", "23", "40")


class _Entry(Generic[Item, Result]):
    """An item in the queue, and its result or error once the call is made."""

    def __init__(self, item: Item, waiter: "threading.Event | asyncio.Future[None]") -> None:
        self.item, self.waiter = item, waiter
        self.result: Result
        self.error: BaseException | None = None

    def outcome(self) -> Result:
        """The result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


class GroupCommit(Generic[Item, Result]):
    """Makes calls of one item as a call of several. An error that one item causes is raised to its caller alone."""

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        size: Callable[[Item], int],
        max_items: int,
        max_bytes: int,
        timeout_seconds: float,
    ) -> None:
        """Group calls to `call`, which is all or nothing.

        Args:
            call: Takes the items of a group; returns a result for each.
            size: The bytes of an item.
            max_items: The most items of a group.
            max_bytes: The most bytes of a group; a larger item goes alone.
            timeout_seconds: The most seconds that an item waits for its group.
        """
        self._call, self._size = call, size
        self._max_items, self._max_bytes, self._timeout_seconds = max_items, max_bytes, timeout_seconds
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._committer: threading.Thread | None = None

    def __call__(self, item: Item) -> Result:
        """The result for this item; the calling thread waits.

        Raises:
            sqlalchemy.exc.TimeoutError: The item's group did not start in time; nothing was done.
            Exception: The error of `call`.
        """
        if self._size(item) > self._max_bytes:
            return self._call([item])[0]
        called = threading.Event()
        entry = self._enqueue(item, called)
        if not called.wait(self._timeout_seconds):
            self._give_up(entry)
            called.wait()  # the call is under way and takes as long as the database allows
        return entry.outcome()

    async def add(self, item: Item) -> Result:
        """The result for this item, which fits a group; a coroutine waits. It raises what a call raises."""
        if self._size(item) > self._max_bytes:
            raise ValueError("a large item is for a thread")
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._enqueue(item, called)
        timer = called.get_loop().call_later(self._timeout_seconds, self._give_up, entry)
        try:
            await called
        finally:
            timer.cancel()
        return entry.outcome()

    def _enqueue(self, item: Item, waiter: "threading.Event | asyncio.Future[None]") -> _Entry[Item, Result]:
        """Put an item into the queue."""
        entry: _Entry[Item, Result] = _Entry(item, waiter)
        with self._changed:
            if self._committer is None:
                committer = threading.Thread(target=self._commit_groups, name="group-commit", daemon=True)
                committer.start()  # it may fail: then the next item tries again
                self._committer = committer
            self._waiting.append(entry)
            self._changed.notify()
        return entry

    def _give_up(self, entry: _Entry[Item, Result]) -> None:
        """End the waiting of an entry that is in the queue still. If its call is under way, it waits on."""
        with self._changed:
            if entry not in self._waiting:
                return
            self._waiting.remove(entry)
        entry.error = exc.TimeoutError("others were before this one for too long")
        _wake([entry])

    def _commit_groups(self) -> None:
        """Call for one group after the other, for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                group = self._next_group()
            self._call_for(group)
            _wake(group)

    def _next_group(self) -> list[_Entry[Item, Result]]:
        """Take the first entries that fit one call off the queue."""
        group: list[_Entry[Item, Result]] = []
        free = self._max_bytes
        while (
            self._waiting and len(group) < self._max_items and (free := free - self._size(self._waiting[0].item)) >= 0
        ):
            group.append(self._waiting.popleft())
        return group

    def _call_for(self, group: Sequence[_Entry[Item, Result]]) -> None:
        """Call for a group; if one item may have caused the error, call for each item alone."""
        try:
            results = list(zip(group, self._call([entry.item for entry in group]), strict=True))
        except BaseException as error:  # this thread must not end: nobody would answer those who wait
            if len(group) == 1:
                group[0].error = error
            elif is_item_error(error):
                self._call_for_each(deque(group))
            else:
                _fail(group, error)
            return
        for entry, result in results:
            entry.result = result

    def _call_for_each(self, remaining: deque[_Entry[Item, Result]]) -> None:
        """Call for each item alone; an error that no item causes ends the calls and fails the remaining items."""
        while remaining:
            entry = remaining.popleft()
            self._call_for([entry])
            if entry.error is not None and not is_item_error(entry.error):
                _fail(remaining, entry.error)  # the database has a problem: each of these would wait for the same error
                return


def _fail(group: Sequence[_Entry[Item, Result]], error: BaseException) -> None:
    """Give several entries an error. Each has a copy: through one traceback, a caller would see another's texts."""
    for entry in group:
        entry.error = copy.copy(error).with_traceback(None)


def _wake(group: Sequence[_Entry[Item, Result]]) -> None:
    """Wake the callers of a group: the threads, and with one call the coroutines of an event loop."""
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for entry in group:
        if isinstance(entry.waiter, threading.Event):
            entry.waiter.set()
        else:
            futures.setdefault(entry.waiter.get_loop(), []).append(entry.waiter)
    for loop, of_loop in futures.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_finish, of_loop)


def _finish(futures: Sequence["asyncio.Future[None]"]) -> None:
    """End the waiting of coroutines, in their own thread."""
    for future in futures:
        if not future.done():
            future.set_result(None)


def is_item_error(error: BaseException) -> bool:
    """Whether a single item can have caused this error."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(ITEM_ERRORS)
