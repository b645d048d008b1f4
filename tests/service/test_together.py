"""Group commit: what waits goes together, and whoever is to blame is alone with it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy.exc import TimeoutError as Waited

from service.db.together import Together
from service.local.supervisor import wait_until


class Table:
    """Stores numbers, all of a call or none; the first call waits until it is let go. A call with `bad` fails."""

    def __init__(self, error=psycopg.errors.UniqueViolation, bad=13, **limits):
        self.calls: list[list[int]] = []
        self.let_go, self._error, self._bad = threading.Event(), error, bad
        settings = {"size": lambda _: 1, "most": 8, "room": 100, "patience": 10.0, **limits}
        self.add = Together(self._store, **settings)

    def _store(self, numbers):
        self.calls.append(list(numbers))
        assert self.let_go.wait(10)
        if self._bad in numbers:
            raise self._error("bad")
        return [10 * number for number in numbers]

    def behind_the_first(self, pool, numbers):
        """Futures of calls that come, in this order, while the first is under way."""
        found = [pool.submit(self.add, 0)]
        assert wait_until(lambda: self.calls == [[0]], 10)
        for number in numbers:
            found.append(pool.submit(self.add, number))
            assert wait_until(lambda: len(self.add._waiting) == len(found) - 1, 10)
        return found


def test_what_comes_meanwhile_goes_together():
    """One call for the first, one for those that waited, in order; each has its own result."""
    table = Table()
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [3, 1, 2])
        table.let_go.set()
        assert [f.result(10) for f in found] == [0, 30, 10, 20]
    assert table.calls == [[0], [3, 1, 2]]
    assert table.add(7) == 70


def test_a_call_is_bounded():
    """In number and in bytes; a large one goes alone."""
    table = Table(most=2)
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [1, 2, 3, 4, 5])
        table.let_go.set()
        assert [f.result(10) for f in found] == [0, 10, 20, 30, 40, 50]
    assert table.calls == [[0], [1, 2], [3, 4], [5]]
    table = Table(size=lambda number: number, room=7)
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [9, 3, 4, 1])
        table.let_go.set()
        assert [f.result(10) for f in found] == [0, 90, 30, 40, 10]
    assert table.calls == [[0], [9], [3, 4], [1]]


def test_one_bad_item_is_nobody_elses_fault():
    """A broken constraint is raised for that item; the others are stored, once."""
    table = Table(psycopg.errors.ForeignKeyViolation)
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [1, 13, 2])
        table.let_go.set()
        assert [found[i].result(10) for i in (0, 1, 3)] == [0, 10, 20]
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            found[2].result(10)
    assert table.calls == [[0], [1, 13, 2], [1], [13], [2]]


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.errors.LockNotAvailable, MemoryError])
def test_a_server_that_is_away_is_told_to_all(error):
    """Nothing is tried again: it may have been stored, or would keep everybody waiting; and the next ones go on."""
    table = Table(error)
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [1, 13, 2])
        table.let_go.set()
        for future in found[1:]:
            with pytest.raises(error):
                future.result(10)
    assert table.calls == [[0], [1, 13, 2]]
    assert table.add(7) == 70


def test_whoever_waits_too_long_is_not_stored_later():
    """A caller who was told to come again does not find what it gave up."""
    table = Table(patience=0.2)
    with ThreadPoolExecutor(8) as pool:
        found = table.behind_the_first(pool, [1])
        with pytest.raises(Waited):
            found[1].result(10)
        table.let_go.set()
        assert found[0].result(10) == 0  # it was under way: it is never given up
        assert table.add(2) == 20
    assert table.calls == [[0], [2]]


def test_many_at_once_each_have_their_own_result():
    """Sixteen threads, no item lost or doubled, and fewer calls than items."""
    table = Table(bad=None)
    table.let_go.set()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(table.add, range(3000))) == [10 * n for n in range(3000)]
    assert sorted(number for call in table.calls for number in call) == list(range(3000))
    assert all(len(call) <= 8 for call in table.calls)
