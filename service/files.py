"""Durable files: written whole or not at all, private ones with mode 0600."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")


def age_seconds(path: Path) -> float:
    """How long ago a file or folder was changed."""
    return time.time() - path.stat().st_mtime


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them, a copy elsewhere; for files that never change again.

    Raises:
        OSError: There is something at `target`, or no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def write_atomically(path: Path, content: str) -> None:
    """Put a small file at `path` durably, whole or not at all."""
    temporary = path.with_name(f".{path.name}")  # one that a crash left is written over
    temporary.write_text(content)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


class CachedFile(Generic[Value]):
    """What a file says that is only ever replaced whole (`write_atomically`), read again once it is another."""

    def __init__(self, path: Path, parse: Callable[[bytes], Value]) -> None:
        """Read `path` when it is asked for first."""
        self._path, self._parse = path, parse
        self._known: tuple[tuple[int, ...], Value] | None = None

    def __call__(self) -> Value:
        """What it says now.

        Raises:
            FileNotFoundError: It is not there.
        """
        found = self._path.stat()
        state = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._known is None or self._known[0] != state:
            self._known = (state, self._parse(self._path.read_bytes()))
        return self._known[1]


def fsync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600, once and durably; leave an existing one as it is."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    try:
        os.link(temporary, path)  # atomic and never over another's file
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
