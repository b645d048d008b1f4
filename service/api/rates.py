"""The rate limit of each API key, counted in each API process. OpenDSR requests are exempt."""

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from service.domain.errors import RateLimited

EXEMPT_PATHS = ("/v2/", "/v1/opengdpr")  # prefixes


class RateLimiter:
    """Counts the requests of each API key."""

    def __init__(self, per_minute: int) -> None:
        """Allow `per_minute` requests; 0 means no limit."""
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, api_key_id: str, path: str) -> None:
        """Count a request.

        Raises:
            RateLimited: The key is over the limit. The error carries the seconds until it may make requests again.
        """
        if self._limit is None or path.startswith(EXEMPT_PATHS) or self._limiter.hit(self._limit, api_key_id):
            return
        reset = self._limiter.get_window_stats(self._limit, api_key_id).reset_time
        raise RateLimited(max(1, round(reset - time.time())))
