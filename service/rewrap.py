"""Wraps data keys again under another epoch's key, so that the key of their present epoch can be destroyed."""

from collections.abc import Sequence
from uuid import UUID

from service.bootstrap import Services
from service.db import key_epochs

CHUNK = 500  # data keys of one transaction


def rewrap_requests(services: Services, epoch: UUID | None, target: UUID | None) -> UUID | None:
    """Wrap the data keys of an epoch's requests under another one, which is begun if there is none yet; returns it."""
    while True:
        with services.db.reading() as session:
            wrapped_keys = key_epochs.wrapped_keys(session, epoch, CHUNK)
        if not wrapped_keys:
            return target
        target = target or services.wrapper.begin()
        _move(services, wrapped_keys, target)


def _move(services: Services, wrapped_keys: Sequence[tuple[UUID, bytes]], target: UUID) -> None:
    """Wrap some data keys under another epoch: first noted outside the database, then stored in it."""
    wrapper, moved = services.wrapper, []
    for request_id, wrapped in wrapped_keys:
        context = str(request_id).encode()
        moved.append((request_id, wrapped, wrapper.wrap_under(target, wrapper.unwrap(wrapped, context), context)))
    wrapper.note_moved(target, [(request_id, new) for request_id, _, new in moved])
    with services.db.transaction() as session:
        key_epochs.store_rewrapped(session, target, moved)
