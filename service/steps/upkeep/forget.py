"""forget: delete delivered callbacks and the events of ended jobs once they are old.

Requests, jobs, versions and certificates stay: they are the record of what was done (GDPR, article 5(2)).
"""

from collections.abc import Callable

from service.bootstrap import Services
from service.db import old_rows


def forget_old(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Delete what is older than `history_days`, as far as `go_on` allows; returns how many rows."""
    total = 0
    for forget in (old_rows.forget_callbacks, old_rows.forget_events):
        while go_on():
            with services.db.transaction() as session:
                count = forget(session, services.settings.history_days)
            total += count
            if count < old_rows.AT_ONCE:
                break
    return total
