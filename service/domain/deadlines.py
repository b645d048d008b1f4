"""When a request is due. The service is a processor: the controller may set an earlier `received_at`."""

import calendar
from datetime import datetime, timedelta

CCPA_DAYS = 45  # Cal. Civ. Code 1798.130(a)(2)


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
