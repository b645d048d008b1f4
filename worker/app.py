"""The Celery application of the worker, its beat schedule, and a graceful stop. Only this file configures Celery.

    celery -A worker.app worker -Q control -B     signs and publishes; needs no torch
    celery -A worker.app worker -Q gpu            computes; has no signing key

Both run tasks on threads: a task waits for the database or for a child process. Celery's prefork processes are
daemonic and cannot have children of their own.
"""

import threading
from functools import cache

from celery.signals import celeryd_init, setup_logging, worker_init, worker_shutdown, worker_shutting_down
from celery.worker import WorkController

from service.bootstrap import Services, build_server
from service.config import Settings
from service.explain import explained
from service.observability import logging, tracing
from service.queue import CONTROL, ROUTES, celery_app
from worker.presence import Presence
from worker.slots import Slots
from worker.steps.sandbox import host_sandbox

logger = logging.get_logger(__name__)
stopping, computes = threading.Event(), threading.Event()
slots, presence = Slots(), Presence()
lookers: list[threading.Thread] = []
HAND_BACK_SECONDS = 25
settings = explained(Settings)
app = celery_app(settings.broker_url)
app.conf.task_routes = {step: {"queue": queue} for step, queue in ROUTES.items()}
app.conf.imports = ("worker.tasks",)
app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": {"queue": CONTROL, "expires": max(seconds, 5)}}
    for name, seconds in {
        "sweep": settings.sweep_seconds,
        "collect": settings.collect_seconds,
        "scrub": settings.collect_seconds,
    }.items()
}


@cache
def get_services() -> Services:
    """The services of this process."""
    return build_server(settings, computes=computes.is_set())


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: object) -> None:
    """Configure logging. A listener on this signal keeps Celery from configuring it."""
    logging.configure(settings.log_level)


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _prepare(sender: str, **_: object) -> None:
    """Wire the services, or end with one line. Configure tracing under the first part of the worker's name."""
    if sender.startswith("compute"):
        computes.set()
    explained(get_services)
    tracing.configure(sender.partition("@")[0])


@worker_init.connect  # type: ignore[untyped-decorator]
def _look_for_work(sender: WorkController, **_: object) -> None:
    """Let a compute worker look for work by itself: it needs no message and no broker."""
    if not computes.is_set():
        return
    from worker.tasks import compute

    def look() -> None:
        while not stopping.wait(settings.sweep_seconds):
            try:
                compute(get_services())
            except Exception as error:  # such as a database that is away: the next look may find it
                logger.warning("looking for work failed", error=type(error).__name__)

    slots.deal(sender.concurrency)
    presence.begin(get_services(), slots)
    for number in range(sender.concurrency):
        lookers.append(threading.Thread(target=look, name=f"slot-{number}", daemon=True))
        lookers[-1].start()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _wait_for_jobs(**_: object) -> None:
    """Wait until the jobs of these threads are handed back, as Celery waits for its own."""
    for looker in lookers:
        looker.join(HAND_BACK_SECONDS)
    presence.end()


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _check_compute_sandbox(sender: str, **_: object) -> None:
    """Check the host of a compute worker."""
    if sender.startswith("compute"):
        check_sandbox()


def check_sandbox() -> None:
    """Say what a compute worker's host does not enforce, and end if the settings require it."""
    if settings.compute_sandbox == "off":
        return
    missing = host_sandbox().missing
    if missing and settings.compute_sandbox == "require":
        raise SystemExit(f"this host cannot confine the compute child: {', '.join(missing)}")
    for name in missing:
        logger.warning("the compute child is not confined", step=name)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop(**_: object) -> None:
    """On SIGTERM, running tasks hand their jobs back instead of finishing them."""
    stopping.set()
