"""The pure rules: states, deadlines, records, windows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.batching import Pending, seal
from service.domain.deadlines import due_at, extended
from service.domain.errors import IllegalTransition, Invalid
from service.domain.records import check_records
from service.domain.states import (
    REQUEST_TRANSITIONS,
    STAGE_TRANSITIONS,
    TERMINAL_REQUESTS,
    RequestStatus,
    Stage,
    check_request,
    check_stage,
)  # fmt: skip
from service.schemas.models import Policy
from worker.engine.options import Options

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize("current", RequestStatus)
@pytest.mark.parametrize("target", RequestStatus)
def test_only_the_table_moves_requests(current, target):
    """Every pair that the table does not list raises."""
    if target in REQUEST_TRANSITIONS[current]:
        check_request(current, target)
    else:
        with pytest.raises(IllegalTransition):
            check_request(current, target)


def test_policies_say_what_the_engine_does():
    """A policy's defaults and its presets are the engine's; what a policy names wins over its preset."""
    assert Options.from_mapping(Policy().model_dump()) == Options()
    assert Options.from_mapping(Policy(preset="paper").model_dump()) == Options.paper()
    mixed = Options.from_mapping(Policy(preset="paper", shrink=True).model_dump())
    assert mixed == replace(Options.paper(), shrink=True)


def test_every_request_state_reaches_an_end():
    """From each state that is not terminal some path leads to a terminal one; a job's stages likewise."""
    for table, ends in ((REQUEST_TRANSITIONS, TERMINAL_REQUESTS), (STAGE_TRANSITIONS, {Stage.DONE, Stage.QUARANTINED})):
        for state in table:
            seen, todo = set(), [state]
            while todo:
                current = todo.pop()
                if current not in seen:
                    seen.add(current)
                    todo += table[current]
            assert seen & ends


def test_a_cancelled_request_stays_cancelled():
    """No way out of cancelled, completed, not_memorised, rejected."""
    for state in TERMINAL_REQUESTS - {RequestStatus.FAILED}:
        assert not REQUEST_TRANSITIONS[state]
    with pytest.raises(IllegalTransition):
        check_stage(Stage.DONE, Stage.QUEUED)


@pytest.mark.parametrize(
    ("received", "regulation", "due"),
    [
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "gdpr", datetime(2026, 2, 28, 12, tzinfo=UTC)),
        (datetime(2026, 12, 15, tzinfo=UTC), "gdpr", datetime(2027, 1, 15, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), "ccpa", datetime(2026, 2, 15, tzinfo=UTC)),
        (datetime(2026, 3, 31, tzinfo=UTC), "other", datetime(2026, 4, 30, tzinfo=UTC)),
    ],
)
def test_deadlines(received, regulation, due):
    """GDPR one month, clipped to the month's end; CCPA 45 days."""
    assert due_at(received, regulation) == due


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "records"), (["x"] * 5, "records"), (["ok", ""], "records.1.text"), (["  \n\t"], "records.0.text"),
        (["a\0b"], "records.0.text"), (["é" * 6], "records.0.text"),
    ],
)  # fmt: skip
def test_bad_records_name_their_field(texts, field):
    """Each error names its field and repeats nothing."""
    with pytest.raises(Invalid) as caught:
        check_records(texts, max_records=4, max_record_bytes=11)
    assert caught.value.field == field
    assert not any(text.strip() and text in caught.value.detail for text in texts if len(text) > 1)


@pytest.mark.parametrize(
    ("due", "regulation", "later"),
    [
        ("2026-01-31", "gdpr", "2026-03-28"), ("2026-11-30", "gdpr", "2027-01-30"),
        ("2026-03-01", "ccpa", "2026-04-15"), ("2026-03-01", "other", "2026-05-01"),
    ],
)  # fmt: skip
def test_extensions(due, regulation, later):
    """Two further months under the GDPR, 45 days under the CCPA."""
    assert extended(datetime.fromisoformat(due), regulation) == datetime.fromisoformat(later)


def pending(records: int, *, age: float = 0, due: timedelta = timedelta(days=30), name: int = 0) -> Pending[int]:
    """A pending request."""
    return Pending(name, records, NOW - timedelta(seconds=age), NOW + due)


def test_a_window_closes_on_size_age_or_deadline():
    """And stays open otherwise."""
    rule = {"max_batch_records": 4, "max_wait_seconds": 60, "now": NOW}
    assert seal([], **rule) == []
    assert seal([pending(1), pending(1)], **rule) == []
    assert seal([pending(2, name=1), pending(2, name=2)], **rule) == [1, 2]
    assert seal([pending(1, age=61, name=1), pending(1, name=2)], **rule) == [1, 2]
    assert seal([pending(1, due=timedelta(days=1), name=1)], **rule) == [1]


def test_a_request_larger_than_a_batch_goes_alone():
    """Nothing is left behind for ever."""
    assert seal([pending(9, name=1), pending(1, name=2)], max_batch_records=4, max_wait_seconds=60, now=NOW) == [1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_batches_never_overflow_and_always_take_the_first(sizes, limit):
    """The earliest deadline is in; the rest fits."""
    rows = [pending(size, age=99, name=i) for i, size in enumerate(sizes)]
    picked = seal(rows, max_batch_records=limit, max_wait_seconds=60, now=NOW)
    assert picked[0] == 0
    assert sum(sizes[i] for i in picked) <= max(limit, sizes[0])
    assert picked == sorted(set(picked))
