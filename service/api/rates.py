"""So many requests a minute for each key, in each API process; controllers that speak OpenDSR are not counted."""

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from service.domain.errors import RateLimited

EXEMPT = ("/v2/", "/v1/opengdpr")


class Rates:
    """Counts."""

    def __init__(self, per_minute: int) -> None:
        """Allow so many; 0: any number."""
        self._item = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, key_id: str, path: str) -> None:
        """Count a request of a key.

        Raises:
            TooMany: With the seconds until it may come again.
        """
        if self._item is None or path.startswith(EXEMPT) or self._limiter.hit(self._item, key_id):
            return
        reset = self._limiter.get_window_stats(self._item, key_id).reset_time
        raise RateLimited(max(1, round(reset - time.time())))
