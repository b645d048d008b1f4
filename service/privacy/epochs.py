"""Epoch keys: they wrap data keys, and their destruction is what makes a purge final.

PostgreSQL keeps what was deleted: in heap pages, in the WAL, in replicas and dumps. So whatever makes a purged text
unreadable must never have been in PostgreSQL. Each process wraps the data keys of new requests under an epoch key of
its own, and begins a new epoch after some hours or MAX_DATA_KEYS requests. An epoch key is a file of some dozen bytes,
wrapped under the key-encryption key. When requests of an epoch are purged, the data keys of its other requests are
wrapped again under another epoch, and the file is overwritten and unlinked.

    E/<epoch>.key      the epoch's key, wrapped
    E/<epoch>.moved    data keys that were wrapped again under this epoch: a backup of the database has only their
                       earlier form, which nothing opens any more
    E/<epoch>.doomed   the key is destroyed as soon as the database no longer names the epoch
    E/<epoch>.unnamed  since then the database has not named the epoch: it was restored from before it, or a process was
                       killed before it had entered the epoch

The folder is shared by all processes. Its backups must be mirrors: a backup that keeps destroyed keys undoes purges.
"""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.domain.errors import NotFound
from service.files import age_seconds, destroy_file, fsync, write_atomically, write_private
from service.privacy.envelope import KEY_BYTES, KeyWrapper, open_sealed, seal
from service.privacy.randomness import random_bytes, random_uuid

MARK = b"epoch1"  # the beginning of a data key that is wrapped under an epoch key; before epochs, there was none
HEADER_BYTES = len(MARK) + 16
CHECK = "master.check"  # opens with the present key-encryption key
MAX_OPEN = 256  # epoch keys that a process holds in memory
MAX_DATA_KEYS = 5000  # of one epoch, so that a purge wraps no more of them again
SOME_DATA_KEYS = 100  # that threads may wrap at once


def wrapping_epoch(wrapped: bytes) -> UUID | None:
    """The epoch of a wrapped data key; None if the key-encryption key itself wrapped it."""
    return UUID(bytes=wrapped[len(MARK) : HEADER_BYTES]) if wrapped.startswith(MARK) else None


class EpochKeys:
    """Wraps data keys under epoch keys, which the key-encryption key wraps."""

    def __init__(self, master: KeyWrapper, folder: Path, seconds: float, register: Callable[[UUID], None]) -> None:
        """Keep the keys in `folder`.

        Args:
            master: Wraps the epoch keys.
            folder: Shared by all processes, and private to them.
            seconds: How long this process wraps under one epoch key.
            register: Enters an epoch into the database, before a request names it.
        """
        self.master, self._folder, self._seconds, self._register = master, folder, seconds, register
        self._lock = threading.Lock()
        self._present: tuple[UUID, float] | None = None  # the epoch, and when it ends
        self._free = 0  # data keys that the present epoch still takes
        self._open: dict[UUID, AESGCM] = {}

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key under the present epoch, or under a new one if its key was destroyed."""
        try:
            return self.wrap_under(self._next_epoch(), key, context)
        except NotFound:
            self.end_present()
            return self.wrap_under(self._next_epoch(), key, context)

    def wrap_under(self, epoch: UUID, key: bytes, context: bytes) -> bytes:
        """Seal a data key under this epoch.

        Raises:
            NotFound: The epoch's key was destroyed.
        """
        return MARK + epoch.bytes + seal(self._aead(epoch), key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key.

        Raises:
            NotFound: The epoch's key was destroyed.
            cryptography.exceptions.InvalidTag: The key or the context is another one, or a byte was changed.
        """
        epoch = wrapping_epoch(wrapped)
        if epoch is None:
            return self.master.unwrap(wrapped, context)
        return open_sealed(self._aead(epoch), wrapped[HEADER_BYTES:], context)

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """A hash under a key that outlives epochs."""
        return self.master.keyed_hash(purpose, data)

    def _next_epoch(self) -> UUID:
        """The epoch for one data key more."""
        with self._lock:
            if self._present is None or not self._free or time.monotonic() > self._present[1]:
                self._present, self._free = (self.begin(), time.monotonic() + self._seconds), MAX_DATA_KEYS
            self._free -= 1
            return self._present[0]

    def has_room(self) -> bool:
        """Whether the present epoch takes some more data keys. Otherwise the next one costs a file, the database and
        perhaps a call of the KMS."""
        present = self._present  # without the lock: whoever begins an epoch holds it for long
        if present is None or present[0] not in self._open:
            return False
        return self._free > SOME_DATA_KEYS and time.monotonic() < present[1]

    def end_present(self) -> None:
        """Begin a new epoch with the next data key, because the present one was destroyed."""
        with self._lock:
            self._present = None

    def begin(self) -> UUID:
        """A new epoch: first its file, then its row, so that no row lacks its key.

        `destroy_unnamed` sees both or none.
        """
        epoch, key = random_uuid(), random_bytes(KEY_BYTES)
        with self._locked(fcntl.LOCK_SH):
            self._check_master()
            write_private(self._file(epoch), self.master.wrap(key, _context(epoch)))
            fsync(self._folder)
            self._register(epoch)
        self._remember(epoch, key)
        return epoch

    def check_writable(self) -> None:
        """Check that this process can begin epochs and hash.

        Raises:
            OSError: The folder cannot be written to, or the keys for hashes are missing.
        """
        if not os.access(self._folder, os.W_OK):
            raise PermissionError(errno.EACCES, "not writable", str(self._folder))
        self.keyed_hash("check", b"")

    def _check_master(self) -> None:
        """Refuse to wrap under a key-encryption key that another one has replaced.

        Raises:
            cryptography.exceptions.InvalidTag: This process has another key than the folder: start it again.
        """
        check = self._folder / CHECK
        if not check.exists():
            write_private(check, self.master.wrap(CHECK.encode(), CHECK.encode()))
        self.master.unwrap(check.read_bytes(), CHECK.encode())

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this is the one process that moves and destroys keys now."""
        with (self._folder / ".alone").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def exists(self, epoch: UUID) -> bool:
        """Whether the epoch's key still exists."""
        return self._file(epoch).exists()

    def doom(self, epoch: UUID) -> None:
        """Note that the key is to be destroyed once the database does not name the epoch: a crash may come between."""
        self._file(epoch, "doomed").touch()
        fsync(self._folder)

    def doomed(self) -> list[UUID]:
        """The epochs whose destruction was begun."""
        return [UUID(path.stem) for path in self._folder.glob("*.doomed")]

    def destroy(self, epoch: UUID) -> None:
        """Destroy an epoch's key for good. Nothing that it wrapped can be opened any more."""
        with self._locked(fcntl.LOCK_SH):  # a rotation would write the key anew
            self._destroy(epoch)

    def _destroy(self, epoch: UUID) -> None:
        self._open.pop(epoch, None)
        for path in (self._file(epoch), self._file(epoch).with_name(f".{epoch}.key")):  # a crash of one leaves that
            destroy_file(path)
        for suffix in ("moved", "doomed", "unnamed"):
            self._file(epoch, suffix).unlink(missing_ok=True)

    def destroy_unnamed(self, existing: Callable[[Sequence[UUID]], set[UUID]], *, older_than: float) -> int:
        """Destroy keys that were found unnamed `older_than` seconds ago, and still are; returns how many.

        The time lets an operator restore another dump, which names them. While a process begins an epoch, or the
        key-encryption key is replaced, this leaves it to the next call.

        Args:
            existing: The epochs among some that the database names.
            older_than: Seconds since the first call that found the key unnamed.
        """
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                present = [UUID(path.stem) for path in self._folder.glob("[!.]*.key")]
                named, old = existing(present), []
                for epoch in present:
                    mark = self._file(epoch, "unnamed")
                    if epoch in named:
                        mark.unlink(missing_ok=True)
                    elif not mark.exists():
                        mark.touch()
                    elif age_seconds(mark) > older_than:
                        old.append(epoch)
                for epoch in old:
                    self._destroy(epoch)
                return len(old)
        except BlockingIOError:
            return 0

    def note_moved(self, epoch: UUID, wrapped_keys: Iterable[tuple[UUID, bytes]]) -> None:
        """Note (request, data key wrapped under `epoch`) outside the database, for a database that is restored."""
        lines = "".join(json.dumps([str(request), wrapped.hex()]) + "\n" for request, wrapped in wrapped_keys)
        with self._file(epoch, "moved").open("a") as handle:
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())

    def moved(self) -> dict[UUID, bytes]:
        """Request -> its data key as it was wrapped last."""
        moved: dict[UUID, bytes] = {}
        for path in sorted(self._folder.glob("*.moved"), key=lambda path: path.stat().st_mtime):
            for line in path.read_text().splitlines():
                try:
                    request, wrapped = json.loads(line)
                except ValueError:
                    continue  # a crash cut the line; the database has the earlier key still
                moved[UUID(request)] = bytes.fromhex(wrapped)
        return moved

    def rewrap(self, new: KeyWrapper, end: Callable[[], None]) -> int:
        """Wrap every epoch key under a new key-encryption key; a call after a crash goes on where it stopped.

        Args:
            new: The new key-encryption key.
            end: Makes it the key of this service; no process makes an epoch key meanwhile.

        Returns:
            The number of epoch keys.
        """
        with self._locked(fcntl.LOCK_EX):
            paths = sorted(self._folder.glob("*.key"))
            for path in paths:
                context, wrapped = _context(UUID(path.stem)), path.read_bytes()
                try:
                    new.unwrap(wrapped, context)
                except InvalidTag:
                    key = self.master.unwrap(wrapped, context)
                    wrapped = new.wrap(key, context)
                    if new.unwrap(wrapped, context) != key:
                        raise ValueError("the new key does not open what it wraps") from None
                    write_atomically(path, wrapped, mode=0o600)
            write_atomically(self._folder / CHECK, new.wrap(CHECK.encode(), CHECK.encode()), mode=0o600)
            end()
        return len(paths)

    def _aead(self, epoch: UUID) -> AESGCM:
        """The cipher of an epoch."""
        cipher = self._open.get(epoch)
        if cipher is None:
            try:
                wrapped = self._file(epoch).read_bytes()
            except FileNotFoundError:
                raise NotFound("The key of these texts was destroyed.") from None
            cipher = self._remember(epoch, self.master.unwrap(wrapped, _context(epoch)))
        return cipher

    def _remember(self, epoch: UUID, key: bytes) -> AESGCM:
        while len(self._open) >= MAX_OPEN:
            present = self._present and self._present[0]
            self._open.pop(next((other for other in list(self._open) if other != present), epoch), None)
        cipher = self._open[epoch] = AESGCM(key)
        return cipher

    def _file(self, epoch: UUID, suffix: str = "key") -> Path:
        return self._folder / f"{epoch}.{suffix}"

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Keep a rotation of the key-encryption key and new epoch keys apart."""
        with (self._folder / ".lock").open("a") as handle:
            fcntl.flock(handle, kind)
            yield


def _context(epoch: UUID) -> bytes:
    """The associated data of an epoch key."""
    return f"epoch {epoch}".encode()
