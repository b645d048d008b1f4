"""Deadlines and their extension."""

from datetime import UTC, datetime

import pytest

from service.domain.deadlines import due_at, extended


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
    ("due", "regulation", "later"),
    [
        ("2026-01-31", "gdpr", "2026-03-28"),
        ("2026-11-30", "gdpr", "2027-01-30"),
        ("2026-03-01", "ccpa", "2026-04-15"),
        ("2026-03-01", "other", "2026-05-01"),
    ],
)
def test_extensions(due, regulation, later):
    """Two further months under the GDPR, 45 days under the CCPA."""
    assert extended(datetime.fromisoformat(due), regulation) == datetime.fromisoformat(later)
