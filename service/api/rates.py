"""The rate limit of each API key, over all API processes. OpenDSR requests are exempt.

Each process counts for itself. Every second it writes its counts to the broker, and reads what the others have written.
So no request waits for the broker, and a key may go over its limit by what the other processes admit in a second. While
the broker is away, each process limits alone.
"""

import asyncio
import threading
import time
from collections import Counter
from typing import Any
from uuid import uuid4

from service.domain.errors import RateLimited
from service.observability.logging import get_logger
from service.queue import celery_app

logger = get_logger(__name__)
EXEMPT_PATHS = ("/v2/", "/v1/opengdpr")  # prefixes
MINUTE, EXCHANGE_SECONDS = 60, 1.0


class RateLimiter:
    """Counts the requests of each API key in a minute of the clock."""

    def __init__(self, per_minute: int, broker_url: str = "") -> None:
        """Allow `per_minute` requests; 0 means no limit. Without a Redis broker this process counts alone."""
        self._limit, self._lock, self._minute = per_minute, threading.Lock(), 0
        self._own, self._others = Counter[str](), Counter[str]()
        self._broker_url = broker_url if per_minute and broker_url.startswith("redis") else ""
        self._name, self._client = uuid4().hex, None

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
            self._own.clear()
            self._others.clear()

    async def keep_exchanging(self) -> None:
        """Exchange counts with the other processes every second, until cancelled."""
        is_away = False
        while self._broker_url:
            await asyncio.sleep(EXCHANGE_SECONDS)
            try:
                await asyncio.to_thread(self.exchange)
                is_away = False
            except Exception as error:  # of the broker's client, of kombu or of a URL: requests go on without it
                if not is_away:
                    logger.warning("the broker is away: each process limits alone", error=type(error).__name__)
                is_away = True

    def exchange(self) -> None:
        """Write this process' counts to the broker, and read the others'. To do it twice is to do it once.

        Raises:
            Exception: What the broker's client raises.
        """
        with self._lock:
            self._begin_minute(int(time.time() // MINUTE))
            minute, own = self._minute, dict(self._own)
        if not own:
            return
        pipeline = self._connected().pipeline(transaction=False)
        for api_key_id, count in own.items():  # each process has a field of its own
            name = f"unlearnd/rate/{minute}/{api_key_id}"
            pipeline.hset(name, self._name, count)
            pipeline.expire(name, 2 * MINUTE)
            pipeline.hvals(name)
        sums = [sum(map(int, values)) for values in pipeline.execute()[2::3]]
        with self._lock:
            if minute == self._minute:
                for api_key_id, total in zip(own, sums, strict=True):
                    self._others[api_key_id] = total - own[api_key_id]

    def _connected(self) -> Any:
        """The broker's client, as Celery makes it of the URL."""
        if self._client is None:
            app = celery_app(self._broker_url)
            once = {**app.conf.broker_transport_options, "max_retries": 0}  # the next exchange tries again
            self._client = app.connection(transport_options=once).default_channel.client
        return self._client
