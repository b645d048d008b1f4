"""shred: make purged texts unreadable in every heap page, WAL segment, replica and dump of the database.

A purge deletes rows. This step destroys the keys of the epochs that the purged requests were sealed in; before that, it
wraps the data keys of the other requests of these epochs under a new epoch's key. It can be killed anywhere: the folder
of keys remembers what was begun, and each move is noted outside the database before the database stores it.

A restored database may not know that a request of an epoch was purged, or not know the epoch at all. So storage's
ledger names the epochs of purged requests, too. A key that neither names is destroyed after `orphan_seconds`.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from service.bootstrap import Services
from service.db import key_epochs
from service.privacy.epochs import wrapping_epoch
from service.rewrap import Rewrap


def shred_purged(services: Services) -> int:
    """Destroy the keys of all epochs with purged requests; returns how many. One that is in use waits for next time.

    One process at a time does this: while another one is at it, the answer is 0.
    """
    with services.wrapper.alone() as is_alone:
        return _shred(services) if is_alone else 0


def _shred(services: Services) -> int:
    rewrap_restored(services)  # first, because it may name epochs that a restored database lacks
    destroyed = _take_over_ledger(services) + _finish_destructions(services)
    with services.db.reading() as session:
        epochs = key_epochs.doomed(session)
    rewrap = Rewrap(services)
    for epoch in epochs:
        rewrap.move_requests(epoch)
        services.wrapper.doom(epoch)
        try:
            with services.db.transaction() as session:
                key_epochs.delete_unused(session, epoch)
        except IntegrityError:  # a request was accepted meanwhile
            continue
        services.wrapper.destroy(epoch)
        destroyed += 1
    rewrap.end()
    age = services.settings.orphan_seconds
    return destroyed + services.wrapper.destroy_unnamed(lambda among: _existing(services, among), older_than=age)


def _existing(services: Services, among: Sequence[UUID]) -> set[UUID]:
    """The epochs among these that the database names."""
    with services.db.reading() as session:
        return key_epochs.existing(session, among)


def _take_over_ledger(services: Services) -> int:
    """Mark epochs of purged requests as such, and destroy the keys of those that the database lacks; returns how many.

    A database that was not restored knows them all.
    """
    epochs = [epoch for epoch in services.storage.purged_epochs() if services.wrapper.exists(epoch)]
    with services.db.transaction() as session:
        key_epochs.mark_purged(session, epochs)
        unnamed = set(epochs) - key_epochs.existing(session, epochs)
    for epoch in unnamed:
        services.wrapper.destroy(epoch)
    return len(unnamed)


def _finish_destructions(services: Services) -> int:
    """Destroy the keys of epochs that a killed process had already removed from the database; returns how many."""
    doomed = services.wrapper.doomed()
    unnamed = set(doomed) - _existing(services, doomed)
    for epoch in unnamed:
        services.wrapper.destroy(epoch)
    return len(unnamed)


def rewrap_restored(services: Services) -> int:
    """Give requests of a restored database the data keys that were wrapped again since the backup; returns how many.

    A request that is not found among them was purged, or nothing can read its texts any more.
    """
    with services.db.reading() as session:
        lost = [epoch for epoch in key_epochs.in_use(session) if not services.wrapper.exists(epoch)]
        unreadable = key_epochs.unreadable(session, lost) if lost else []
    noted = services.wrapper.moved() if unreadable else {}
    moved = [(request_id, old, noted[request_id]) for request_id, old in unreadable if request_id in noted]
    for request_id, old, new in moved:
        epoch = wrapping_epoch(new)
        assert epoch is not None
        with services.db.transaction() as session:
            key_epochs.insert(session, epoch)
            key_epochs.store_rewrapped(session, epoch, [(request_id, old, new)])
    return len(moved)
