"""The list of files in a folder: path, size, sha256. Whatever is not a plain file is an error."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from service.audit.canonical import dumps


class FileEntry(TypedDict):
    """One file of a folder."""

    path: str
    size: int
    sha256: str


class NotPlain(ValueError):
    """The folder holds a link, a device or a socket."""


def file_entry(root: Path, path: str) -> FileEntry:
    """Hash one file below `root`."""
    file = root / path
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"path": path, "size": file.stat().st_size, "sha256": digest}


def file_entries(root: Path, paths: Sequence[str]) -> list[FileEntry]:
    """Hash files below `root`, several at once; in the order given."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: file_entry(root, path), paths))


def _refuse(error: OSError) -> None:
    raise error


def list_paths(root: Path) -> list[str]:
    """Relative paths of all files below `root`, hidden ones included, sorted.

    Raises:
        NotPlain: Something is neither a folder nor a plain file.
        OSError: A folder cannot be read.
    """
    found: list[str] = []
    for folder, directories, names in os.walk(root, followlinks=False, onerror=_refuse):
        for name in [*directories, *names]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise NotPlain(f"{path.relative_to(root)} is neither a file nor a folder")
        found += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def manifest(root: Path) -> list[FileEntry]:
    """Every file below `root`, sorted by path.

    Raises:
        NotPlain: Something is neither a folder nor a plain file.
    """
    return file_entries(root, list_paths(root))


def manifest_digest(entries: list[FileEntry]) -> str:
    """The sha256 of a manifest in canonical form; it names a release folder."""
    return hashlib.sha256(dumps(entries)).hexdigest()
