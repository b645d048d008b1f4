"""Helpers for durable files: atomic writes, private files with mode 0600, cached reads, hashes."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
COPIED_AT_ONCE = 2**30  # bytes


def age_seconds(path: Path) -> float:
    """The seconds since a file or folder was last changed."""
    return time.time() - path.stat().st_mtime


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy if the file system has no links; for files that never change again.

    Raises:
        OSError: `target` exists, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def copy_contents(source: int, target: Path) -> None:
    """Copy an open file into a new one; a file system that shares blocks shares them until either file changes.

    Raises:
        OSError: `target` exists, or the disk is full.
    """
    with target.open("xb") as copied, os.fdopen(os.dup(source), "rb") as handle:
        with contextlib.suppress(OSError, AttributeError):  # no such call here, or not between these file systems
            while os.copy_file_range(source, copied.fileno(), COPIED_AT_ONCE):
                pass
        shutil.copyfileobj(handle, copied)  # what is left


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write a small file durably; a crash leaves either the old content or the new."""
    temporary = path.with_name(f".{path.name}")  # overwrites a file that a crash left
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as handle:
        handle.write(content.encode() if isinstance(content, str) else content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    fsync(path.parent)


class CachedFile(Generic[Value]):
    """The parsed content of a file that is only replaced as a whole (`write_atomically`); read again after a change."""

    def __init__(self, path: Path, parse: Callable[[bytes], Value]) -> None:
        """Use the file at `path`; it is read at the first call."""
        self._path, self._parse = path, parse
        self._cached: tuple[tuple[int, ...], Value] | None = None

    def __call__(self) -> Value:
        """The parsed current content.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        status = self._path.stat()
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._cached is None or self._cached[0] != state:
            self._cached = (state, self._parse(self._path.read_bytes()))
        return self._cached[1]


def fsync(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600 durably; an existing file stays as it is."""
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
        os.link(temporary, path)  # atomic, and never replaces a file that another process wrote
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def destroy_file(path: Path) -> None:
    """Overwrite a small file, then unlink it. A file that does not exist is fine.

    On a disk that writes elsewhere (flash, copy on write) the old blocks may stay until the disk reuses them.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(os.urandom(os.fstat(descriptor).st_size))
        handle.flush()
        os.fsync(descriptor)
    path.unlink(missing_ok=True)
    fsync(path.parent)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
