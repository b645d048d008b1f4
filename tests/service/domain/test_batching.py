"""When a window closes, and what it takes."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.domain.batching import Pending, requests_that_fit, requests_to_batch

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def pending(records: int, *, age: float = 0, due: timedelta = timedelta(days=30), name: int = 0) -> Pending[int]:
    """A pending request."""
    return Pending(name, records, NOW - timedelta(seconds=age), NOW + due)


def test_a_window_closes_on_size_age_or_deadline():
    """And stays open otherwise."""
    rule = {"max_batch_records": 4, "max_wait_seconds": 60, "now": NOW}
    assert requests_to_batch([], **rule) == []
    assert requests_to_batch([pending(1), pending(1)], **rule) == []
    assert requests_to_batch([pending(2, name=1), pending(2, name=2)], **rule) == [1, 2]
    assert requests_to_batch([pending(1, age=61, name=1), pending(1, name=2)], **rule) == [1, 2]
    assert requests_to_batch([pending(1, due=timedelta(days=1), name=1)], **rule) == [1]


def test_a_request_larger_than_a_batch_goes_alone():
    """Nothing is left behind for ever."""
    assert requests_to_batch(
        [pending(9, name=1), pending(1, name=2)], max_batch_records=4, max_wait_seconds=60, now=NOW
    ) == [1]


def test_who_joins_a_job_fits_into_it():
    """A request that is too large does not keep the next one out."""
    waiting = [pending(3, name=1), pending(2, name=2), pending(1, name=3), pending(1, name=4)]
    assert requests_that_fit(waiting, 2) == [2]
    assert requests_that_fit(waiting, 4) == [1, 3]
    assert requests_that_fit(waiting, 0) == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_batches_never_overflow_and_always_take_the_first(sizes, limit):
    """The earliest deadline is in; the rest fits."""
    rows = [pending(size, age=99, name=i) for i, size in enumerate(sizes)]
    picked = requests_to_batch(rows, max_batch_records=limit, max_wait_seconds=60, now=NOW)
    assert picked[0] == 0
    assert sum(sizes[i] for i in picked) <= max(limit, sizes[0])
    assert picked == sorted(set(picked))
