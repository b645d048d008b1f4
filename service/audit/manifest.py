"""Manifests: path, size and sha256 of every file in a folder. A folder may hold only plain files and folders."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from service.audit.canonical import dumps

MODEL_FOLDER = "model/"  # of a release: the files that transformers loads
DELTA_FOLDER = "delta/"  # of a release: the change from an earlier version, for those who have that version


class FileEntry(TypedDict):
    """One file of a folder."""

    path: str
    size: int
    sha256: str


class NotPlain(ValueError):
    """The folder holds a link, a device, a socket, or something else that is not a plain file."""


def sha256_by_path(files: Sequence[FileEntry]) -> dict[str, str]:
    """Path -> sha256."""
    return {entry["path"]: entry["sha256"] for entry in files}


def file_entry(root: Path, path: str) -> FileEntry:
    """Hash one file below `root`."""
    file = root / path
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"path": path, "size": file.stat().st_size, "sha256": digest}


def file_entries(root: Path, paths: Sequence[str]) -> list[FileEntry]:
    """Hash files below `root`, several at a time; the result keeps the order of `paths`."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: file_entry(root, path), paths))


def _raise_error(error: OSError) -> None:
    """Make `os.walk` raise the errors that it would ignore."""
    raise error


def list_paths(root: Path) -> list[str]:
    """The relative paths of all files below `root`, hidden files included, sorted.

    Raises:
        NotPlain: An entry is neither a folder nor a plain file.
        OSError: A folder cannot be read.
    """
    paths: list[str] = []
    for folder, directories, names in os.walk(root, followlinks=False, onerror=_raise_error):
        for name in [*directories, *names]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise NotPlain(f"{path.relative_to(root)} is neither a file nor a folder")
        paths += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(paths)


def manifest(root: Path) -> list[FileEntry]:
    """The entries of all files below `root`, sorted by path.

    Raises:
        NotPlain: An entry is neither a folder nor a plain file.
    """
    return file_entries(root, list_paths(root))


def manifest_digest(entries: list[FileEntry]) -> str:
    """The hex sha256 of a manifest in canonical form; release folders are named by it.

    The delta is left out, because most copies of a release do not have it. The certificate lists its files.
    """
    return hashlib.sha256(dumps([entry for entry in entries if not entry["path"].startswith(DELTA_FOLDER)])).hexdigest()
