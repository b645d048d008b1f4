"""The one file of `worker` that owns Celery: the application, its beat, and a graceful stop.

    celery -A worker.app worker -Q control -B     signs and publishes; no torch
    celery -A worker.app worker -Q gpu            computes; no signing key

Both run tasks on threads: a task waits for the database or for a child process, and Celery's prefork processes
are daemonic and may have no children of their own.
"""

import threading
from functools import cache
from typing import Any

from celery.signals import celeryd_init, setup_logging, worker_shutting_down

from service.bootstrap import Services, build
from service.config import Settings
from service.observability import logging, tracing
from service.queue import CONTROL, ROUTES, celery_app

stopping = threading.Event()
settings = Settings()
app = celery_app(settings.broker_url)
app.conf.task_routes = {step: {"queue": queue} for step, queue in ROUTES.items()}
app.conf.imports = ("worker.tasks",)
app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": {"queue": CONTROL, "expires": max(seconds, 5)}}
    for name, seconds in {"sweep": settings.sweep_seconds, "collect": settings.collect_seconds}.items()
}


@cache
def get_services() -> Services:
    """The wired parts of this process."""
    return build(settings)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    """Celery leaves logging alone once somebody listens to this signal."""
    logging.configure(settings.log_level)


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _trace(sender: str, **_: Any) -> None:
    """Spans are of the part that the worker's name begins with: control or compute."""
    tracing.configure(sender.partition("@")[0])


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    """SIGTERM: whoever works hands its job back now instead of finishing it."""
    stopping.set()
