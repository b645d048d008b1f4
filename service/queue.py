"""The one file of `service` that owns Celery: sending wake-ups. A message is a hint that carries an id.

Postgres is the queue of record. A message that is lost, doubled, late or out of order changes nothing: the
sweep finds work whose wake-up was lost, and a claim that comes too late takes zero rows.
"""

import threading
from uuid import UUID

from celery import Celery

from service.observability.logging import get_logger

logger = get_logger(__name__)
CLOSE_SECONDS = 3
ROUND_SECONDS = 0.05  # what is said more often is said once
CONTROL, COMPUTE = "control", "gpu"
ROUTES = {
    "batch": CONTROL, "certify": CONTROL, "publish": CONTROL, "deliver": CONTROL, "sweep": CONTROL, "collect": CONTROL,
    "index": CONTROL, "resolve": CONTROL,
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
    """Sends wake-ups; call it after the commit that made the work.

    A thread of its own sends them: whoever made work does not wait for a broker, even one that is away, and of many
    wake-ups that say the same while it is busy, one is sent.
    """

    def __init__(self, broker_url: str) -> None:
        """Connect lazily."""
        self._app = celery_app(broker_url)
        self._waiting: dict[tuple[str, UUID | None], float] = {}
        self._changed = threading.Condition()
        self._sender: threading.Thread | None = None
        self._closing = threading.Event()

    def wake(self, step: str, identifier: UUID | None = None, *, expires: float = 600) -> None:
        """Say that `step` has work; if that cannot be sent, the sweep makes up for it."""
        with self._changed:
            self._waiting[step, identifier] = expires
            if self._sender is None:
                self._sender = threading.Thread(target=self._send, name="wake-ups", daemon=True)
                self._sender.start()
            self._changed.notify()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                if not self._waiting:
                    return
                taken, self._waiting = self._waiting, {}
            for (step, identifier), expires in taken.items():
                arguments = [str(identifier)] if identifier else []
                try:
                    self._app.send_task(step, args=arguments, queue=ROUTES[step], expires=expires)
                except Exception as error:  # this thread must not end: the sweep finds what it could not say
                    kind = type(error).__name__
                    logger.warning("no message is sent; the sweep will find it", step=step, id=identifier, error=kind)
            self._closing.wait(ROUND_SECONDS)

    def close(self) -> None:
        """Send what waits, as far as a few seconds allow, and close pooled connections."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._sender is not None:
            self._sender.join(CLOSE_SECONDS)
        self._app.close()
