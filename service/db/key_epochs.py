"""Queries on epochs of data keys, and on the data keys that they wrap."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import Session

from service.db.tables import DeletionRequest, KeyEpoch


def insert(session: Session, epoch: UUID) -> None:
    """Enter an epoch; one that is there stays as it is."""
    session.execute(insert_or_skip(KeyEpoch).values(id=epoch).on_conflict_do_nothing())


def set_target(session: Session, epoch: UUID, *, is_target: bool) -> None:
    """Note that data keys are being moved to an epoch, or no longer."""
    session.execute(update(KeyEpoch).where(KeyEpoch.id == epoch).values(is_target=is_target))


def doomed(session: Session) -> list[UUID]:
    """Epochs of which a request was purged, or to which data keys were being moved when a process was killed."""
    return list(session.scalars(select(KeyEpoch.id).where(KeyEpoch.has_purged | KeyEpoch.is_target)))


def mark_purged(session: Session, among: Sequence[UUID]) -> None:
    """Note that a request of these epochs was purged."""
    unmarked = KeyEpoch.id.in_(among) & ~KeyEpoch.has_purged
    session.execute(update(KeyEpoch).where(unmarked).values(has_purged=True))


def existing(session: Session, among: Sequence[UUID]) -> set[UUID]:
    """The epochs among these that the database names."""
    return set(session.scalars(select(KeyEpoch.id).where(KeyEpoch.id.in_(among))))


def delete_unused(session: Session, epoch: UUID) -> None:
    """Delete an epoch.

    Raises:
        sqlalchemy.exc.IntegrityError: A request is still wrapped under it.
    """
    session.execute(delete(KeyEpoch).where(KeyEpoch.id == epoch))


def in_use(session: Session) -> set[UUID]:
    """The epochs that a request names."""
    query = select(DeletionRequest.key_epoch).where(DeletionRequest.key_epoch.is_not(None)).distinct()
    return {epoch for epoch in session.scalars(query) if epoch is not None}


def wrapped_keys(session: Session, epoch: UUID | None, limit: int) -> list[tuple[UUID, bytes]]:
    """(request, wrapped data key) of some requests of an epoch, locked; None: from before there were epochs.

    Locked, so that none of them is purged before its data key is moved.
    """
    same = DeletionRequest.key_epoch.is_(None) if epoch is None else DeletionRequest.key_epoch == epoch
    return _wrapped(session, _with_key().where(same).limit(limit).with_for_update())


REWRAP = text("""
UPDATE deletion_requests AS request SET wrapped_key = moved.new, key_epoch = :epoch
FROM unnest(CAST(:ids AS uuid[]), CAST(:old AS bytea[]), CAST(:new AS bytea[])) AS moved (id, old, new)
WHERE request.id = moved.id AND request.wrapped_key = moved.old
""")


def store_rewrapped(session: Session, epoch: UUID, moved: Sequence[tuple[UUID, bytes, bytes]]) -> None:
    """Replace wrapped data keys (request, old, new) by keys of `epoch`. A data key that changed meanwhile stays."""
    ids, old, new = ([row[i] for row in moved] for i in range(3))
    session.execute(REWRAP, {"epoch": epoch, "ids": ids, "old": old, "new": new})


def unreadable(session: Session, epochs: Sequence[UUID]) -> list[tuple[UUID, bytes]]:
    """(request, wrapped data key) of the requests of these epochs."""
    return _wrapped(session, _with_key().where(DeletionRequest.key_epoch.in_(epochs)))


def _with_key() -> Select[UUID, bytes | None]:
    return select(DeletionRequest.id, DeletionRequest.wrapped_key).where(DeletionRequest.wrapped_key.is_not(None))


def _wrapped(session: Session, query: Select[UUID, bytes | None]) -> list[tuple[UUID, bytes]]:
    return [(request_id, wrapped or b"") for request_id, wrapped in session.execute(query)]
