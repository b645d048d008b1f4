"""Wraps data keys again under another epoch's key, so that the key of their present epoch can be destroyed."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import key_epochs
from service.privacy.epochs import MAX_DATA_KEYS

CHUNK = 500  # data keys of one transaction


class Rewrap:
    """Moves the data keys of some epochs' requests to new epochs, each of a bounded size.

    Until `end` the targets count as epochs with purged requests: if this process is killed, its notes hold data keys
    that the database does not have, and they must not outlive the requests.
    """

    def __init__(self, services: Services) -> None:
        """Begin a target only when there is a data key to move."""
        self._services = services
        self._targets: list[UUID] = []
        self._free = 0  # data keys that the last target still takes

    def move_requests(self, epoch: UUID | None) -> None:
        """Wrap the data keys of an epoch's requests under another one; None: those from before there were epochs."""
        while True:
            with self._services.db.transaction() as session:
                wrapped_keys = key_epochs.wrapped_keys(session, epoch, CHUNK)
                if not wrapped_keys:
                    return
                if self._free < len(wrapped_keys):
                    self._begin_target()
                self._free -= len(wrapped_keys)
                self._move(session, wrapped_keys, self._targets[-1])

    def end(self) -> None:
        """The database has every data key that was moved."""
        for target in self._targets:
            with self._services.db.transaction() as session:
                key_epochs.set_target(session, target, is_target=False)

    def _begin_target(self) -> None:
        """A new epoch to move data keys to."""
        target = self._services.wrapper.begin()
        with self._services.db.transaction() as session:
            key_epochs.set_target(session, target, is_target=True)
        self._targets.append(target)
        self._free = MAX_DATA_KEYS

    def _move(self, session: Session, wrapped_keys: Sequence[tuple[UUID, bytes]], target: UUID) -> None:
        """Wrap some data keys under another epoch: first noted outside the database, then stored in it."""
        wrapper, moved = self._services.wrapper, []
        for request_id, wrapped in wrapped_keys:
            context = str(request_id).encode()
            moved.append((request_id, wrapped, wrapper.wrap_under(target, wrapper.unwrap(wrapped, context), context)))
        wrapper.note_moved(target, [(request_id, new) for request_id, _, new in moved])
        key_epochs.store_rewrapped(session, target, moved)
