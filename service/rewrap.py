"""Wraps data keys again under another epoch's key, so that the key of their present epoch can be destroyed."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import key_epochs

CHUNK = 500  # data keys of one transaction


def rewrap_requests(services: Services, epoch: UUID | None, target: UUID | None) -> UUID | None:
    """Wrap the data keys of an epoch's requests under another one, which is begun if there is none yet; returns it.

    Until `end_rewrap` the target counts as an epoch with purged requests: if this process is killed, its notes hold
    data keys that the database does not have, and they must not outlive the requests.
    """
    while True:
        with services.db.transaction() as session:
            wrapped_keys = key_epochs.wrapped_keys(session, epoch, CHUNK)
            if not wrapped_keys:
                return target
            target = target or _begin(services)
            _move(services, session, wrapped_keys, target)


def end_rewrap(services: Services, target: UUID | None) -> None:
    """The database has every data key that was moved to the target."""
    if target is not None:
        with services.db.transaction() as session:
            key_epochs.set_target(session, target, is_target=False)


def _begin(services: Services) -> UUID:
    """A new epoch to move data keys to."""
    target = services.wrapper.begin()
    with services.db.transaction() as session:
        key_epochs.set_target(session, target, is_target=True)
    return target


def _move(services: Services, session: Session, wrapped_keys: Sequence[tuple[UUID, bytes]], target: UUID) -> None:
    """Wrap some data keys under another epoch: first noted outside the database, then stored in it."""
    wrapper, moved = services.wrapper, []
    for request_id, wrapped in wrapped_keys:
        context = str(request_id).encode()
        moved.append((request_id, wrapped, wrapper.wrap_under(target, wrapper.unwrap(wrapped, context), context)))
    wrapper.note_moved(target, [(request_id, new) for request_id, _, new in moved])
    key_epochs.store_rewrapped(session, target, moved)
