"""A compute worker says in the database that it lives, and what its slots offer, also while they are all busy."""

import threading
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from service.bootstrap import Services
from service.db import compute_workers
from service.lease import new_owner
from service.observability.logging import get_logger
from worker.slots import Slots

logger = get_logger(__name__)
END_SECONDS = 5


class Presence:
    """This process among the compute workers of all hosts."""

    def __init__(self) -> None:
        """Nobody knows of it yet."""
        self._name, self._ended = new_owner(), threading.Event()
        self._services: Services | None = None
        self._thread: threading.Thread | None = None

    def begin(self, services: Services, slots: Slots) -> None:
        """Say so now and in each sweep interval, in a thread of its own."""
        self._services = services
        self._thread = threading.Thread(target=self._run, args=(services, slots), name="presence", daemon=True)
        self._thread.start()

    def _run(self, services: Services, slots: Slots) -> None:
        """Say so until this worker ends."""
        while not self._ended.is_set():
            try:
                with services.db.transaction() as session:
                    compute_workers.note(session, self._name, slots.all)
            except SQLAlchemyError as error:
                logger.warning("the database is away", error=type(error).__name__)
            self._ended.wait(services.settings.sweep_seconds)

    def end(self) -> None:
        """Say that this worker has ended. If the database is away, others find out by themselves."""
        self._ended.set()
        if self._thread is not None and self._services is not None:
            self._thread.join(END_SECONDS)  # it may be about to say that this worker lives
            with suppress(SQLAlchemyError), self._services.db.transaction() as session:
                compute_workers.forget(session, self._name)
