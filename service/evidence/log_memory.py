"""Where the keeper of the log keeps its memory: the last checkpoint, and the tiles of what it covers (C2SP tlog-tiles).

`FolderMemory` has them in a folder that all control workers share, `BucketMemory` in an object storage.
"""

import fcntl
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from service.audit.merkle import HASH_BYTES, leaf_hash
from service.audit.tiles import ENTRIES, WIDTH, TiledTree, extend, tile_path
from service.domain.errors import StorageAway
from service.evidence.old_log_memory import OLD_ENTRIES, OLD_MEMORY, convert, old_note
from service.files import CachedFile, write_atomically

if TYPE_CHECKING:
    from obstore import UpdateVersion

    from service.bucket import Bucket

CHECKPOINT, WITNESSED, LOCK, TILES = "checkpoint", "witnessed", "lock", "tile"
KNOWN_SECONDS, FIRST_SECONDS = (
    5.0,
    1.0,
)  # between two looks at what every receipt quotes; the longest wait for the first
SIGN_ATTEMPTS = 3
LOCK_TIMEOUT_SECONDS, POLL_SECONDS = 10.0, 0.05  # the longest wait for the lock; the pause between two attempts


class LogDamaged(Exception):
    """A tile in storage is missing, or is not the one that was signed. The database has what a new one is made of."""


class LogBusy(Exception):
    """Another process has held the log's memory for too long and may be frozen; the caller tries again later."""


class Overtaken(LogBusy):
    """Another process has signed the log meanwhile."""


class LogMemory(ABC):
    """A checkpoint and tiles. Whoever writes holds the memory; everybody may read."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Hold the memory: of those who hold it at once, one can write a checkpoint.

        Raises:
            LogBusy: Another process holds it.
        """

    @abstractmethod
    def note(self) -> str | None:
        """The last checkpoint, or None before the first."""

    def known_note(self) -> str | None:
        """The last checkpoint, or one that was the last a moment ago, at no cost."""
        return self.note()

    @abstractmethod
    def write_note(self, note: str) -> None:
        """Replace the checkpoint.

        Raises:
            Overtaken: Another process has replaced it since this one holds the memory.
        """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The file at a path.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file durably, whole or not at all."""

    @abstractmethod
    def paths(self) -> list[str]:
        """Every path, also of the logs that have ended."""

    @abstractmethod
    def remove_below(self, path: str) -> None:
        """Remove what is below a path."""

    @abstractmethod
    def ended(self) -> int:
        """How many logs have ended before this one."""

    @abstractmethod
    def end(self) -> None:
        """Put this log with those that have ended."""

    def read_tile(self, level: int | str, number: int, width: int) -> bytes:
        """A tile of at least this width.

        Raises:
            LogDamaged: There is none, or it is cut off.
        """
        for path in (tile_path(level, number, width), tile_path(level, number)):  # it may be filled by now
            with suppress(FileNotFoundError):
                data = self.read(path)
                if level == ENTRIES or len(data) >= HASH_BYTES * width:
                    return data
        raise LogDamaged(f"{tile_path(level, number, width)} is missing or cut off")

    def extend(self, size: int, entries: list[bytes]) -> None:
        """Write the tiles of the next entries of a log of this size."""
        extend(size, entries, [leaf_hash(entry) for entry in entries], self.read_tile, self._write_tile)

    def _write_tile(self, level: int | str, number: int, width: int, data: bytes) -> None:
        """Write a tile. A full one replaces those that held less."""
        path = tile_path(level, number, width)
        self.write(path, data)
        if width == WIDTH:
            self.remove_below(f"{path}.p")


class FolderMemory(LogMemory):
    """In a folder, with a lock that one process at a time has.

    A frozen process keeps its lock, so that it never writes into another process's work. So waiting has a limit.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`."""
        self._folder, self._note = folder, CachedFile(folder / CHECKPOINT, bytes.decode)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the lock of the folder. An old memory is made a new one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as handle:
            _wait_for(handle)
            if (self._folder / OLD_MEMORY).exists():
                with (self._folder / OLD_ENTRIES).open("a") as old:
                    _wait_for(old)  # a worker of the release before may be signing
                    convert(self._folder, self.extend, lambda size: TiledTree(size, self.read_tile).root)
            yield

    def note(self) -> str | None:
        """The file `checkpoint`."""
        try:
            return self._note()
        except FileNotFoundError:
            return old_note(self._folder)

    def write_note(self, note: str) -> None:
        """Replace the file."""
        write_atomically(self._folder / CHECKPOINT, note)

    def read(self, path: str) -> bytes:
        """Read the file."""
        return (self._folder / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """Replace the file."""
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / path, data)

    def paths(self) -> list[str]:
        """Every file but the lock."""
        files = [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()]
        return [path for path in files if path != LOCK]

    def remove_below(self, path: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder / path, ignore_errors=True)

    def ended(self) -> int:
        """The number of folders."""
        return len(list(self._folder.glob("ended-*")))

    def end(self) -> None:
        """Move the files to a folder."""
        archive = self._folder / f"ended-{1 + self.ended()}"
        archive.mkdir()
        for name in (TILES, WITNESSED, CHECKPOINT):
            if (self._folder / name).exists():
                (self._folder / name).rename(archive / name)


class BucketMemory(LogMemory):
    """In a bucket. Nobody is kept from it, and a checkpoint is written only if it replaces the one that was read.

    Tiles of the same entries are the same. What a process wrote that came too late is written over.
    """

    def __init__(self, bucket: "Bucket", below: str) -> None:
        """Use the keys below `below`."""
        self._bucket, self._below, self._lock = bucket, below, threading.Lock()
        self._version: UpdateVersion | None = None
        self._known: str | None = None
        self._asked_at = float("-inf")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note which checkpoint is the last. Threads of this process wait for each other."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise LogBusy("the log is held by another thread")
        try:
            try:
                _, self._version = self._bucket.get_with_version(f"{self._below}/{CHECKPOINT}")
            except FileNotFoundError:
                self._version = None
            yield
        finally:
            self._lock.release()

    def note(self) -> str | None:
        """The object `checkpoint`."""
        try:
            return self._bucket.get(f"{self._below}/{CHECKPOINT}").decode()
        except FileNotFoundError:
            return None

    def known_note(self) -> str | None:
        """The object as it was in the last seconds; while the bucket is away, as it was seen last.

        A thread reads it: whoever asks waits for a moment at most.
        """
        if time.monotonic() - self._asked_at > KNOWN_SECONDS:
            self._asked_at = time.monotonic()
            reader = threading.Thread(target=self._learn, daemon=True)
            reader.start()
            reader.join(FIRST_SECONDS if self._known is None else 0)
        return self._known

    def _learn(self) -> None:
        with suppress(StorageAway):
            self._known = self.note()

    def write_note(self, note: str) -> None:
        """Replace the object, if it is still the one that was read."""
        if not self._bucket.replace(f"{self._below}/{CHECKPOINT}", note.encode(), self._version):
            raise Overtaken("another process has signed the log meanwhile")

    def read(self, path: str) -> bytes:
        """Read the object."""
        return self._bucket.get(f"{self._below}/{path}")

    def write(self, path: str, data: bytes) -> None:
        """Write the object."""
        self._bucket.put(f"{self._below}/{path}", data)

    def paths(self) -> list[str]:
        """Every object."""
        return [*self._bucket.objects(self._below)]

    def remove_below(self, path: str) -> None:
        """Remove the objects."""
        self._bucket.delete_below(f"{self._below}/{path}")

    def ended(self) -> int:
        """The number of folders."""
        return sum(name.startswith("ended-") for name in self._bucket.folders(self._below))

    def end(self) -> None:
        """Copy the objects, and remove them, the checkpoint last."""
        archive = f"{self._below}/ended-{1 + self.ended()}"
        folders = [
            f"{folder}/{path}"
            for folder in (TILES, WITNESSED)
            for path in self._bucket.objects(f"{self._below}/{folder}")
        ]
        for path in (*folders, CHECKPOINT):
            with suppress(FileNotFoundError):
                self._bucket.copy(f"{self._below}/{path}", f"{archive}/{path}")
        self._bucket.delete(f"{self._below}/{path}" for path in (*folders, CHECKPOINT))


def _wait_for(handle: IO[str]) -> None:
    """Take the lock of an open file.

    Raises:
        LogBusy: Another process has held it for LOCK_TIMEOUT_SECONDS.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LogBusy("the log is held by another process") from None
            time.sleep(POLL_SECONDS)  # flock has no timeout
