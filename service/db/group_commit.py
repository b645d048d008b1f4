"""Group commit: callers that arrive while a call is under way share the next call, and one of them makes it.

A transaction costs a round trip and a flush whether it stores one request or thirty, so under load the callers share
the flush. A caller that is alone calls at once, in its own thread. There is no timer and no extra thread: the caller
that has waited longest becomes the leader of the next group. A large item goes alone, so that no other item waits
for it.
"""

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

    def __init__(self, item: Item) -> None:
        self.item, self.leads = item, False
        self.woken = threading.Event()
        self.result: Result
        self.error: Exception | None = psycopg.OperationalError("the leader of the group was interrupted")

    def succeed(self, result: Result) -> None:
        self.result, self.error = result, None
        self.woken.set()

    def fail(self, error: Exception, *, shared: bool) -> None:
        # A shared error is copied: one traceback for all would expose the texts of one caller to another.
        self.error = copy.copy(error).with_traceback(None) if shared else error
        self.woken.set()


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
        self._lock = threading.Lock()
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._has_leader = False

    def __call__(self, item: Item) -> Result:
        """The result for this item.

        Raises:
            sqlalchemy.exc.TimeoutError: The item's group did not start in time; nothing was done.
            Exception: The error of `call`.
        """
        if self._size(item) > self._max_bytes:
            return self._call([item])[0]
        entry: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            if not self._has_leader:
                self._has_leader = True
                self._appoint(entry)
        if not entry.woken.wait(self._timeout_seconds):
            with self._lock:
                if entry in self._waiting and not entry.leads:
                    self._waiting.remove(entry)
                    raise exc.TimeoutError("others were before this one for too long")
            entry.woken.wait()  # the call is under way and takes as long as the database allows
        if entry.leads:
            self._lead()
        if entry.error is not None:
            raise entry.error
        return entry.result

    @staticmethod
    def _appoint(entry: _Entry[Item, Result]) -> None:
        """Make the caller of an entry the leader."""
        entry.leads = True
        entry.woken.set()

    def _lead(self) -> None:
        """Call for the next group, then appoint the next leader."""
        with self._lock:
            group = self._next_group()
        try:
            self._call_for(group)
        finally:
            for entry in group:
                entry.woken.set()
            with self._lock:
                self._has_leader = bool(self._waiting)
                if self._waiting:
                    self._appoint(self._waiting[0])

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
        except Exception as error:
            if len(group) > 1 and _is_item_error(error):
                self._call_for_each(deque(group))
            else:
                for entry in group:
                    entry.fail(error, shared=len(group) > 1)
            return
        for entry, result in results:
            entry.succeed(result)

    def _call_for_each(self, remaining: deque[_Entry[Item, Result]]) -> None:
        """Call for each item alone; an error that no item causes ends the calls and fails the remaining items."""
        while remaining:
            entry = remaining.popleft()
            self._call_for([entry])
            if entry.error is not None and not _is_item_error(entry.error):
                while remaining:  # the database has a problem: each of these would wait for the same error in turn
                    remaining.popleft().fail(entry.error, shared=True)


def _is_item_error(error: Exception) -> bool:
    """Whether a single item can have caused this error."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(ITEM_ERRORS)
