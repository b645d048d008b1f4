"""The rate limit of each API key, over all API processes. OpenDSR requests are exempt.

Each process counts for itself. Every second it adds what it has counted to the broker's sums, and learns what the
others have counted. So no request waits for the broker, and a key may go over its limit by what the other processes
admit in a second. While the broker is away, each process limits alone.
"""

import asyncio
import threading
import time
from collections import Counter

from redis import Redis
from redis.exceptions import RedisError

from service.domain.errors import RateLimited
from service.observability.logging import get_logger

logger = get_logger(__name__)
EXEMPT_PATHS = ("/v2/", "/v1/opengdpr")  # prefixes
MINUTE, EXCHANGE_SECONDS, BROKER_SECONDS = 60, 1.0, 2.0
SCHEMES = {"redis+socket://": "unix://", "redis://": "redis://", "rediss://": "rediss://"}  # Celery's -> redis-py's


class RateLimiter:
    """Counts the requests of each API key in a minute of the clock."""

    def __init__(self, per_minute: int, broker_url: str = "") -> None:
        """Allow `per_minute` requests; 0 means no limit. Without a broker that adds up, this process counts alone."""
        self._limit, self._lock, self._minute = per_minute, threading.Lock(), 0
        self._own, self._told, self._others = Counter[str](), Counter[str](), Counter[str]()
        scheme = next((scheme for scheme in SCHEMES if broker_url.startswith(scheme)), None)
        self._broker: Redis | None = None
        if per_minute and scheme:
            url = SCHEMES[scheme] + broker_url.removeprefix(scheme)
            self._broker = Redis.from_url(url, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS)

    def count(self, api_key_id: str, path: str) -> None:
        """Count a request.

        Raises:
            RateLimited: The key is over the limit. The error carries the seconds until it may make requests again.
        """
        if not self._limit or path.startswith(EXEMPT_PATHS):
            return
        now = time.time()
        with self._lock:
            self._begin_minute(int(now // MINUTE))
            if self._own[api_key_id] + self._others[api_key_id] >= self._limit:
                raise RateLimited(max(1, round(MINUTE - now % MINUTE)))
            self._own[api_key_id] += 1

    def _begin_minute(self, minute: int) -> None:
        """Forget the counts of another minute."""
        if minute != self._minute:
            self._minute = minute
            for counts in (self._own, self._told, self._others):
                counts.clear()

    async def keep_exchanging(self) -> None:
        """Exchange counts with the other processes every second, until cancelled."""
        if self._broker is None:
            return
        is_away = False
        while True:
            await asyncio.sleep(EXCHANGE_SECONDS)
            try:
                await asyncio.to_thread(self.exchange)
                is_away = False
            except RedisError as error:
                if not is_away:
                    logger.warning("the broker is away: each process limits alone", error=type(error).__name__)
                is_away = True

    def exchange(self) -> None:
        """Add what was counted since the last time to the broker's sums, and learn the others' counts.

        Raises:
            RedisError: The broker does not answer.
        """
        assert self._broker is not None
        with self._lock:
            self._begin_minute(int(time.time() // MINUTE))
            minute, new = self._minute, {key: count - self._told[key] for key, count in self._own.items()}
        pipeline = self._broker.pipeline(transaction=False)
        for api_key_id, count in new.items():
            name = f"unlearnd/rate/{minute}/{api_key_id}"
            pipeline.incrby(name, count)  # by nothing, too: the sum may have grown
            pipeline.expire(name, 2 * MINUTE)
        sums = pipeline.execute()[::2]
        with self._lock:
            if minute == self._minute:
                self._told.update(new)
                for api_key_id, total in zip(new, sums, strict=True):
                    self._others[api_key_id] = total - self._told[api_key_id]

    def close(self) -> None:
        """Close the connection to the broker."""
        if self._broker is not None:
            self._broker.close()
