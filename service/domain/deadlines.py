"""Deadlines of requests.

The service is a processor (GDPR 4(8)): the controller may have received the request earlier, and sets `received_at`.
"""

import calendar
from datetime import UTC, datetime, timedelta

from service.domain.errors import Invalid

CCPA_DAYS = 45  # Cal. Civ. Code 1798.130(a)(2)
CLOCK_SKEW = timedelta(minutes=1)
MAX_AGE = timedelta(days=366)  # every deadline with its extension has passed by then


def add_month(moment: datetime) -> datetime:
    """The same day of the next month, or its last day (Regulation 1182/71, article 3)."""
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def extended(due: datetime, regulation: str) -> datetime:
    """The extended deadline: two months more (GDPR 12(3)), 45 days more (CCPA). A controller may extend it once."""
    return due + timedelta(days=CCPA_DAYS) if regulation == "ccpa" else add_month(add_month(due))


def due_at(received_at: datetime, regulation: str) -> datetime:
    """The deadline for an answer: 45 days (CCPA), one month (GDPR 12(3) and any other regulation)."""
    return received_at + timedelta(days=CCPA_DAYS) if regulation == "ccpa" else add_month(received_at)


def check_received(received_at: datetime, now: datetime) -> None:
    """Check the time at which a controller received a request.

    Raises:
        Invalid: The time lies in the future, or more than a year back.
    """
    if received_at > now + CLOCK_SKEW:
        raise Invalid("The time lies in the future.", field="received_at")
    if received_at.replace(tzinfo=UTC) < now - MAX_AGE:
        raise Invalid("The time lies more than a year back.", field="received_at")
