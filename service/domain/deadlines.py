"""When a request is due. The service is a processor: the controller may set an earlier `received_at`."""

import calendar
from datetime import UTC, datetime, timedelta

from service.domain.errors import Invalid

CCPA_DAYS = 45  # Cal. Civ. Code 1798.130(a)(2)
CLOCK_SKEW = timedelta(minutes=1)
OLDEST = timedelta(days=3653)


def add_month(moment: datetime) -> datetime:
    """The same day of the next month, or its last day (Regulation 1182/71, article 3)."""
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def extended(due: datetime, regulation: str) -> datetime:
    """A deadline as a controller may extend it, once and with a reason: two months (GDPR 12(3)), 45 days (CCPA)."""
    return due + timedelta(days=CCPA_DAYS) if regulation == "ccpa" else add_month(add_month(due))


def due_at(received_at: datetime, regulation: str) -> datetime:
    """The last moment to answer: GDPR 12(3) one month, CCPA 45 days, anything else one month."""
    return received_at + timedelta(days=CCPA_DAYS) if regulation == "ccpa" else add_month(received_at)


def check_received(received_at: datetime, now: datetime) -> None:
    """Accept this as the time at which a controller received a request.

    Raises:
        Invalid: It lies in the future, or more than ten years back.
    """
    if received_at > now + CLOCK_SKEW:
        raise Invalid("The time lies in the future.", field="received_at")
    if received_at.replace(tzinfo=UTC) < now - OLDEST:
        raise Invalid("The time lies more than ten years back.", field="received_at")
