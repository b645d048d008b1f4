"""The one file of `service` that owns Celery: sending wake-ups. A message is a hint that carries an id.

Postgres is the queue of record. A message that is lost, doubled, late or out of order changes nothing: the
sweep finds work whose wake-up was lost, and a claim that comes too late takes zero rows.
"""

import logging
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

CONTROL, COMPUTE = "control", "gpu"
ROUTES = {
    "batch": CONTROL, "certify": CONTROL, "publish": CONTROL, "deliver": CONTROL, "sweep": CONTROL, "collect": CONTROL,
    "unlearn": COMPUTE,
}  # fmt: skip


def celery_app(broker_url: str) -> Celery:
    """A Celery application on this broker, with nothing that would make delivery matter."""
    app = Celery("unlearnd", broker=broker_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5, "retry_on_timeout": True},
        task_publish_retry=False,
        enable_utc=True,
    )
    return app


class Queue:
    """Sends wake-ups; call it after the commit that made the work."""

    def __init__(self, broker_url: str) -> None:
        """Connect lazily."""
        self._app = celery_app(broker_url)

    def wake(self, step: str, identifier: UUID | None = None, *, expires: float = 600) -> None:
        """Say that `step` has work; a broker that is down is logged, and the sweep makes up for it."""
        arguments = [str(identifier)] if identifier else []
        try:
            self._app.send_task(step, args=arguments, queue=ROUTES[step], expires=expires)
        except OperationalError:
            log.warning("the broker cannot be reached; the sweep will find step=%s id=%s", step, identifier)

    def close(self) -> None:
        """Close pooled connections."""
        self._app.close()
