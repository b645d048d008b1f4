"""copy_storage: bring another storage up to this one, a folder or a bucket: to move there, or as a backup.

Nothing that the other has is removed or replaced, but for the log's last checkpoint. Working folders are not copied:
they are derived from people's texts. A copy that was broken off goes on where it was.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from service.audit.checkpoint import read_checkpoint
from service.domain.errors import Conflict
from service.evidence.log_memory import CHECKPOINT, LogMemory
from service.storage.interface import Storage

Say = Callable[[str, int, int], None]  # what is copied, how many of them are, and how many there are


def copy_storage(source: Storage, log: LogMemory, target: Storage, target_log: LogMemory, say: Say) -> None:
    """Copy releases, reference texts, the ledger, and then the log's memory.

    Raises:
        Conflict: The other storage has a newer checkpoint of the log.
        LogBusy: A control worker signs there.
        OSError: A file cannot be read or written.
    """
    note = log.note()  # before all else: what it covers is there
    _check_older(target_log, log, note)
    texts = source.reference_text_digests()
    for number, digest in enumerate(texts):
        say("reference texts", number, len(texts))
        if not target.reference_texts(digest).exists():
            with source.reference_texts(digest).open("rb") as file:
                target.add_reference_texts(file)
    digests = list(source.releases())
    for number, digest in enumerate(digests):
        say("releases", number, len(digests))
        with suppress(FileNotFoundError):  # the collector has removed it meanwhile
            _copy_release(source, target, digest)
    say("ledger", 0, 1)
    _copy_ledger(source, target)
    _copy_log(log, target_log, note, say)


def _copy_release(source: Storage, target: Storage, digest: str) -> None:
    """Copy a release, or the files of it that the other lacks."""
    present = target.files(digest)
    missing = [path for path in source.files(digest) if path not in present]
    staged = target.staging(f"copy-{uuid4()}")
    try:
        for path in missing:
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            with (staged / path).open("wb") as file:
                file.writelines(source.parts(digest, path))
            if present:
                target.add_file(digest, path, staged / path)
        if missing and not present:
            target.publish(staged, digest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        target.drop_copy(digest)


def _copy_ledger(source: Storage, target: Storage) -> None:
    """Copy entries that the other lacks."""
    for (model, number), digest in source.published().items() - target.published().items():
        target.add_published(model, number, digest)
    for (model, number), reason in source.withdrawn().items() - target.withdrawn().items():
        target.add_withdrawn(model, number, reason)
    for epoch in set(source.purged_epochs()) - set(target.purged_epochs()):
        target.add_purged_epoch(epoch)
    for request_id in set(source.purged()) - set(target.purged()):
        target.add_purged(request_id, None)


def _copy_log(log: LogMemory, target: LogMemory, note: str | None, say: Say) -> None:
    """Copy tiles, those of ended logs too, and then the checkpoint. Full tiles never change."""
    with target.held():
        _check_older(target, log, note)
        while target.ended() < log.ended():
            target.end()
        present = {path for path in target.paths() if ".p/" not in path}
        paths = [path for path in log.paths() if path != CHECKPOINT and path not in present]
        for number, path in enumerate(paths):
            say("files of the log", number, len(paths))
            with suppress(FileNotFoundError):  # a part of a tile, which is full by now
                target.write(path, log.read(path))
        if note is not None:
            target.write_note(note)


def _check_older(target: LogMemory, log: LogMemory, note: str | None) -> None:
    """Check that the other log is no newer one.

    Raises:
        Conflict: It is.
    """
    if target.ended() > log.ended() or (target.ended() == log.ended() and _size(target.note()) > _size(note)):
        raise Conflict("The log of the other storage is newer than this one.")


def _size(note: str | None) -> int:
    """The number of entries that a checkpoint covers."""
    return read_checkpoint(note).size if note else 0
