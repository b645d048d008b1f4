"""Opens files in the folders that an operator names, and no other file of the server.

Whoever may name a path, or may write into such a folder, must not read the server's other files through it. A check
before a file is opened does not prevent this, because a path can lead elsewhere a moment later. So each file is opened
in three steps:

1. All links of the path are resolved. The result must lie in the same root as the path.
2. The result is opened from the root down, one name at a time. No link is followed any more.
3. Each opened folder and the opened file are checked themselves: none belongs to the service, and the file is regular.

A reader uses the opened file, and does not open the path again.

`copy_plain` takes over a folder in which another process, which is not trusted, may still write.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from service.domain.errors import Invalid
from service.files import copy_contents

NOT_A_FILE = "A regular file is needed, not a folder, a pipe, a socket or a device."
FileId: TypeAlias = tuple[int, int]  # device and inode: the same under every name
# A pipe that nobody writes to does not halt the process.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OutsideRoots(OSError):
    """A path leads out of its root, or to the service's own files. The message never quotes the path."""


class NotAFile(OSError):
    """A path leads to a folder, a pipe, a socket or a device, where a file is needed."""


@dataclass(frozen=True)
class Root:
    """A folder in which files may be read.

    Attributes:
        folder: The folder's real path. The operator may have named a link to it.
        private: Files and folders of the service. They are never opened, even where they lie in the root.
    """

    folder: Path
    private: frozenset[FileId] = frozenset()

    def open(self, path: Path) -> BinaryIO:
        """Open a regular file. Links are followed inside the root.

        Raises:
            OutsideRoots: The path leads out of the root, or to a file of the service.
            NotAFile: It leads to something other than a regular file.
            OSError: The file does not exist, or cannot be read.
        """
        descriptor = self._open(path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotAFile(NOT_A_FILE)
        return os.fdopen(descriptor, "rb")

    def is_folder(self, path: Path) -> bool:
        """Whether the path leads to a folder.

        Raises:
            OutsideRoots: The path leads out of the root, or to a file of the service.
            OSError: It does not exist, or cannot be opened.
        """
        descriptor = self._open(path)
        try:
            return stat.S_ISDIR(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    def files(self, folder: Path) -> list[Path]:
        """Every file in a folder and in the folders below, sorted by path. Links to files count as files.

        Raises:
            OutsideRoots: A link leads out of the root, or the folder contains a folder of the service.
            NotAFile: A link leads to a folder, or there is a pipe, a socket or a device.
            OSError: A folder cannot be read, or a link leads nowhere.
        """
        files: list[Path] = []
        folders = [folder]
        while folders:
            current = folders.pop()
            for path, mode in self._entries(current):
                if stat.S_ISDIR(mode):
                    folders.append(path)
                    continue
                if stat.S_ISLNK(mode):
                    self.open(path).close()
                elif not stat.S_ISREG(mode):
                    raise NotAFile(NOT_A_FILE)
                files.append(path)
        return sorted(files)

    def _entries(self, folder: Path) -> Iterator[tuple[Path, int]]:
        """The paths in a folder, each with its mode; a link has its own mode."""
        descriptor = self._open(folder)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield folder / entry.name, entry.stat(follow_symlinks=False).st_mode
        finally:
            os.close(descriptor)

    def _open(self, path: Path) -> int:
        """Open a file or folder; returns its descriptor."""
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.folder):
            raise OutsideRoots("A link leads out of the folder that the operator named.")
        descriptor = os.open(self.folder, FLAGS | os.O_DIRECTORY)
        try:
            self._check(descriptor)
            for name in real.relative_to(self.folder).parts:
                inner = os.open(name, FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
                self._check(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.ELOOP:  # a name became a link after the links were resolved, or they form a circle
                raise OutsideRoots("A link leads out of the folder that the operator named.") from error
            raise
        return descriptor

    def _check(self, descriptor: int) -> None:
        """Refuse a file or folder of the service."""
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in self.private:
            raise OutsideRoots("The path leads to the service's own files, or contains them.")


def copy_plain(root: Path, folder: Path, target: Path) -> None:
    """Copy a folder below `root` to `target`, which is made: plain files and folders alone, and no link is followed.

    Raises:
        NotAFile: There is a link, a pipe, a socket or a device in the folder, or on the way to it.
        OSError: The folder does not exist, or cannot be read; or `target` exists.
    """
    descriptor = os.open(root, FLAGS | os.O_DIRECTORY)
    try:
        for name in folder.relative_to(root).parts:
            inner = _open_plain(name, descriptor)
            os.close(descriptor)
            descriptor = inner
        _copy_entries(descriptor, target)
    finally:
        os.close(descriptor)


def _copy_entries(folder: int, target: Path) -> None:
    """Copy what is in an open folder."""
    target.mkdir()
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        descriptor = _open_plain(name, folder)
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                _copy_entries(descriptor, target / name)
            else:
                copy_contents(descriptor, target / name)
        finally:
            os.close(descriptor)


def _open_plain(name: str, folder: int) -> int:
    """Open a plain file or a folder in an open folder."""
    try:
        descriptor = os.open(name, FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise NotAFile(NOT_A_FILE) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    raise NotAFile(NOT_A_FILE)


class Roots:
    """The folders that settings name for one purpose."""

    def __init__(self, variables: str, folders: Iterable[Path], private: Iterable[Path]) -> None:
        """Use these folders. `variables` are the settings for messages, `private` are paths that are never opened."""
        self._variables = variables
        self._private = frozenset(_existing_ids(private))
        real = (Path(os.path.realpath(folder)) for folder in folders)
        self._folders = [
            folder for folder in real if self._private.isdisjoint(_existing_ids([folder, *folder.parents]))
        ]

    def find(self, path: str | Path) -> tuple[Root, Path]:
        """The root in which a path lies, and the path without links. Only the root's `open` may open it.

        Raises:
            OutsideRoots: The path is not absolute, or lies in no root.
        """
        real = Path(os.path.realpath(path))
        for folder in self._folders if Path(path).is_absolute() else ():
            if real.is_relative_to(folder):
                return Root(folder, self._private), real
        if not self._folders:
            raise OutsideRoots(f"{self._variables} names no folder of the server, so no path can be registered.")
        raise OutsideRoots(
            f"The path does not lie in a folder that {self._variables} names on the server. Give an absolute path, "
            "move the files into such a folder, or have the operator add their folder to the variable."
        )

    def trusted(self, folder: Path) -> Root:
        """A folder that the service itself chose, as a root."""
        return Root(Path(os.path.realpath(folder)), self._private)


def _existing_ids(paths: Iterable[Path]) -> Iterator[FileId]:
    """The identities of those paths that exist."""
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            yield status.st_dev, status.st_ino


@contextmanager
def refused_as_invalid(field: str) -> Iterator[None]:
    """Turn the errors of this module into the answer to a request that named the path in `field`.

    Raises:
        Invalid: The path is refused, or cannot be read. `outside_roots` is the code of a path that leads out.
    """
    try:
        yield
    except OutsideRoots as error:
        raise Invalid(str(error), field=field, code="outside_roots") from error
    except NotAFile as error:
        raise Invalid(str(error), field=field) from error
    except OSError as error:
        raise Invalid("There is no such file or folder on the server, or it cannot be read.", field=field) from error
