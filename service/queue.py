"""The one file of `service` that owns Celery: it sends wake-ups. A message is a hint that carries an id.

Postgres is the queue of record. A message that is lost, doubled, late or out of order changes nothing: the sweep finds
work whose wake-up was lost, and a claim that comes too late takes zero rows.
"""

import threading
from uuid import UUID

from celery import Celery

from service.observability.logging import get_logger

logger = get_logger(__name__)
CLOSE_SECONDS = 3
SEND_INTERVAL_SECONDS = 0.05  # equal wake-ups within one interval are sent once
CONTROL, COMPUTE = "control", "gpu"
ROUTES = {
    "batch": CONTROL,
    "certify": CONTROL,
    "publish": CONTROL,
    "deliver": CONTROL,
    "sweep": CONTROL,
    "collect": CONTROL,
    "scrub": CONTROL,
    "rebuild": CONTROL,
    "index": CONTROL,
    "resolve": CONTROL,
    "unlearn": COMPUTE,
}


def celery_app(broker_url: str) -> Celery:
    """A Celery application on this broker. None of its options makes the service depend on delivery."""
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
    """Sends wake-ups. Call it after the commit that made the work.

    A separate thread sends them, so a caller never waits for the broker, even if the broker is down. While the thread
    is busy, equal wake-ups are merged into one.
    """

    def __init__(self, broker_url: str) -> None:
        """Connect to the broker at the first wake-up."""
        self._app = celery_app(broker_url)
        self._pending: dict[tuple[str, UUID | None], float] = {}  # (step, id) -> seconds until the message expires
        self._changed = threading.Condition()
        self._sender: threading.Thread | None = None
        self._closing = threading.Event()

    def wake(self, step: str, identifier: UUID | None = None, *, expires: float = 600) -> None:
        """Say that `step` has work. If the message cannot be sent, the sweep finds the work later."""
        with self._changed:
            self._pending[step, identifier] = expires
            if self._sender is None:
                self._sender = threading.Thread(target=self._send_pending, name="wake-ups", daemon=True)
                self._sender.start()
            self._changed.notify()

    def _send_pending(self) -> None:
        """Send pending wake-ups until the queue is closed and none is left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing.is_set())
                if not self._pending:
                    return
                wake_ups, self._pending = self._pending, {}
            for (step, identifier), expires in wake_ups.items():
                arguments = [str(identifier)] if identifier else []
                try:
                    self._app.send_task(step, args=arguments, queue=ROUTES[step], expires=expires)
                except Exception as error:  # this thread must not end; the sweep finds work whose wake-up failed
                    kind = type(error).__name__
                    logger.warning("no message is sent; the sweep will find it", step=step, id=identifier, error=kind)
            self._closing.wait(SEND_INTERVAL_SECONDS)

    def close(self) -> None:
        """Send pending wake-ups for at most `CLOSE_SECONDS`, then close the pooled connections."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._sender is not None:
            self._sender.join(CLOSE_SECONDS)
        self._app.close()
