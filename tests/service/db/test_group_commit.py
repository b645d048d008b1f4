"""Group commit: what waits goes together, and whoever is to blame is alone with it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy.exc import TimeoutError as Waited

from service.db.group_commit import GroupCommit
from service.local.process import wait_until


class Table:
    """Stores numbers, all of a call or none; the first call waits until it is let go. A call with `bad` fails."""

    def __init__(self, error=psycopg.errors.UniqueViolation, bad=13, **limits):
        self.calls: list[list[int]] = []
        self.let_go, self._error, self._bad = threading.Event(), error, bad
        settings = {"size": lambda _: 1, "max_items": 8, "max_bytes": 100, "timeout_seconds": 10.0, **limits}
        self.add = GroupCommit(self._store, **settings)

    def _store(self, numbers):
        self.calls.append(list(numbers))
        assert self.let_go.wait(10)
        if self._bad in numbers:
            error = self._error("bad")
            if isinstance(error, tuple):
                return error
            raise error
        return [10 * number for number in numbers]

    def behind_the_first(self, pool, numbers):
        """Futures of calls that come, in this order, while the first is under way."""
        futures = [pool.submit(self.add, 0)]
        assert wait_until(lambda: self.calls == [[0]], 60)
        for number in numbers:
            futures.append(pool.submit(self.add, number))
            assert wait_until(lambda: len(self.add._waiting) == len(futures) - 1, 60)
        return futures


def test_what_comes_meanwhile_goes_together():
    """One call for the first, one for those that waited, in order; each has its own result."""
    table = Table()
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [3, 1, 2])
        table.let_go.set()
        assert [f.result(10) for f in futures] == [0, 30, 10, 20]
    assert table.calls == [[0], [3, 1, 2]]
    assert table.add(7) == 70


def test_a_call_is_bounded():
    """In number and in bytes."""
    table = Table(max_items=2)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [1, 2, 3, 4, 5])
        table.let_go.set()
        assert [f.result(10) for f in futures] == [0, 10, 20, 30, 40, 50]
    assert table.calls == [[0], [1, 2], [3, 4], [5]]
    table = Table(size=lambda number: number, max_bytes=7)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [6, 3, 4, 1])
        table.let_go.set()
        assert [f.result(10) for f in futures] == [0, 60, 30, 40, 10]
    assert table.calls == [[0], [6], [3, 4], [1]]


def test_nobody_waits_for_a_large_one():
    """While one of more than the room is under way, small ones are stored; several large ones at the same time."""
    table = Table(size=lambda number: number, max_bytes=7)
    with ThreadPoolExecutor(8) as pool:
        large = [pool.submit(table.add, number) for number in (8, 9)]
        assert wait_until(lambda: len(table.calls) == 2, 60)
        small = pool.submit(table.add, 1)
        assert wait_until(lambda: len(table.calls) == 3, 60)
        table.let_go.set()
        assert [f.result(10) for f in (*large, small)] == [80, 90, 10]


ALONE = [
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.UniqueViolation,
    psycopg.errors.UntranslatableCharacter,
    psycopg.errors.DeadlockDetected,
]


@pytest.mark.parametrize("error", ALONE)
def test_one_bad_item_is_nobody_elses_fault(error):
    """A broken constraint is raised for that item; the others are stored, once."""
    table = Table(error)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [1, 13, 2])
        table.let_go.set()
        assert [futures[i].result(10) for i in (0, 1, 3)] == [0, 10, 20]
        with pytest.raises(error):
            futures[2].result(10)
    assert table.calls == [[0], [1, 13, 2], [1], [13], [2]]


AWAY = [psycopg.OperationalError, psycopg.errors.LockNotAvailable, MemoryError]


@pytest.mark.parametrize("error", AWAY)
def test_a_server_that_is_away_is_told_to_all(error):
    """Nothing is tried again: it may have been stored, or would keep everybody waiting; and the next ones go on."""
    table = Table(error)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [1, 13, 2])
        table.let_go.set()
        raised = [future.exception(10) for future in futures[1:]]
    assert [type(e) for e in raised] == [error] * 3
    assert len(set(map(id, raised))) == 3  # through one traceback, one caller's texts could be had by another
    assert table.calls == [[0], [1, 13, 2]]
    assert table.add(7) == 70
    with pytest.raises(error) as alone:
        table.add(13)
    assert "_store" in [frame.name for frame in alone.traceback]  # whoever reads the log sees where it came from


def test_a_server_that_goes_while_each_is_tried_is_not_asked_again():
    """After the one bad item nobody else waits for a lock in turn."""
    table = Table(
        lambda _: psycopg.errors.UniqueViolation("bad") if len(table.calls) == 2 else psycopg.OperationalError()
    )
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [1, 13, 2, 3])
        table.let_go.set()
        raised = [future.exception(10) for future in futures]
    assert [type(e) for e in raised] == [type(None)] * 2 + [psycopg.OperationalError] * 3
    assert table.calls == [[0], [1, 13, 2, 3], [1], [13]]


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, "too few"])
def test_whatever_happens_in_a_call_nobody_hangs(wrong):
    """It is interrupted, or what it answers is wrong: all are told, and the next one is stored."""
    table = Table(wrong if wrong != "too few" else lambda _: ())
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [13, 1])
        table.let_go.set()
        raised = [future.exception(10) for future in futures]
    raised_to_all = ValueError if wrong == "too few" else wrong
    assert [type(e) for e in raised] == [type(None), raised_to_all, raised_to_all]
    assert table.add(7) == 70


def test_whoever_waits_too_long_is_not_stored_later():
    """A caller who was told to come again does not find what it gave up."""
    table = Table(timeout_seconds=1)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [1])
        with pytest.raises(Waited):
            futures[1].result(10)
        table.let_go.set()
        assert futures[0].result(10) == 0
        assert table.add(2) == 20
    assert table.calls == [[0], [2]]


def test_a_time_out_while_the_call_is_under_way_is_none():
    """Whoever is in a call does not give up, whatever its clock says: it would be stored, and refused."""
    table = Table(timeout_seconds=0.01)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(table.add, 0)
        assert wait_until(lambda: table.calls == [[0]], 60)
        with pytest.raises(Waited):
            table.add(1)
        assert not first.done()
        table.let_go.set()
        assert first.result(10) == 0


def test_a_committer_that_cannot_start_is_started_with_the_next_item(monkeypatch):
    """The host may be out of threads for a moment. What its caller gave up is not stored."""
    table = Table(bad=None)
    table.let_go.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(RuntimeError):
            table.add(1)
    assert table.add(2) == 20
    assert table.calls == [[2]]


def test_coroutines_and_threads_share_a_call():
    """Each has its own result or error; a coroutine that waits too long is not stored later."""

    async def several(table: Table) -> list[object]:
        waiting = [asyncio.create_task(table.add.add(number)) for number in (1, 13, 2)]
        assert await asyncio.to_thread(wait_until, lambda: len(table.add._waiting) == 4, 60)
        table.let_go.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    table = Table()
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [3])
        first, error, second = asyncio.run(several(table))
        assert [f.result(10) for f in futures] == [0, 30]
    assert (first, type(error), second) == (10, psycopg.errors.UniqueViolation, 20)
    assert table.calls[:2] == [[0], [3, 1, 13, 2]]

    async def late(table: Table) -> None:
        with pytest.raises(Waited):
            await table.add.add(1)

    table = Table(timeout_seconds=0.01)
    with ThreadPoolExecutor(8) as pool:
        futures = table.behind_the_first(pool, [])
        asyncio.run(late(table))
        table.let_go.set()
        assert futures[0].result(10) == 0
    assert table.calls == [[0]]


def test_many_at_once_each_have_their_own_result():
    """Sixteen threads: no item lost or doubled."""
    table = Table(bad=None)
    table.let_go.set()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(table.add, range(3000))) == [10 * n for n in range(3000)]
    assert sorted(number for call in table.calls for number in call) == list(range(3000))
    assert all(len(call) <= 8 for call in table.calls)
