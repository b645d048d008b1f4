"""How many HTTP requests are answered, how, and in what time: counted by the process, or by all that share a socket.

Routes are templates, so that no label holds what a caller sent.
"""

import os

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client: processes count in files there
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SECONDS = Histogram(
    "unlearnd_http_seconds",
    "HTTP requests: from the first byte of the request to the last of the answer",
    ["method", "route", "status"],
    buckets=BUCKETS,
    registry=None,
)


def count(method: str | None, route: str | None, status: int | None, seconds: float) -> None:
    """Count an answered request; a status of None is a client that went away before."""
    kind = f"{status // 100}xx" if status else "none"
    SECONDS.labels(method or "other", route or "none", kind).observe(seconds)


def register(registry: CollectorRegistry) -> None:
    """Add the requests that were counted to a registry."""
    if SHARED_FOLDER in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library gives it no types
    else:
        registry.register(SECONDS)
