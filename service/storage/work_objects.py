"""Working folders of jobs: each attempt has one on its machine, and the bucket has what it has finished."""

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from service.bucket import Bucket
from service.confined import Root
from service.storage.interface import STAGES_FILE
from service.storage.ledger_objects import LedgerObjects
from service.storage.local import ID

MOST_STATE_BYTES = 1 << 24  # of the list of finished stages; a longer one is none of ours


class WorkObjects(LedgerObjects):
    """Storage whose working folders are kept in a bucket, and have a lock while a process computes there."""

    def __init__(self, root: Path, bucket: Bucket, *, create: bool = True) -> None:
        """Use `bucket`, and the folder `root`. To `create` also removes there what killed processes have left."""
        super().__init__(root, bucket)
        self._kept: dict[tuple[UUID, int], dict[str, tuple[int, int, int]]] = {}
        self._locks: dict[tuple[UUID, int], int] = {}
        if create:
            self._remove_abandoned_work()

    def work(self, job_id: UUID, fence: int) -> Path:
        """Make the folder, and lay what the last attempt has kept beside it, or into it."""
        self._remove_abandoned_work()
        folder = self._locked_work(job_id, fence)
        attempts = [int(name) for name in self._bucket.folders(f"work/{job_id}") if name.isdecimal()]
        for attempt in sorted(attempts, reverse=True):
            kept = self._bucket.objects(f"work/{job_id}/{attempt}")
            if attempt <= fence and STAGES_FILE in kept:
                self._fetch_all(f"work/{job_id}/{attempt}", folder.with_name(str(attempt)))
                break
        return folder

    def _locked_work(self, job_id: UUID, fence: int) -> Path:
        """Make the folder of an attempt, with a lock on the job's."""
        while True:
            folder = super().work(job_id, fence)
            with suppress(FileNotFoundError):  # another process took it for abandoned before it had its lock
                lock = _lock(folder.parent, fcntl.LOCK_SH)
                self._locks[job_id, fence] = lock
                if os.fstat(lock).st_ino == folder.parent.stat().st_ino and folder.is_dir():
                    return folder
            self._unlock(job_id, fence)

    def keep_work(self, job_id: UUID, fence: int) -> None:
        """Upload what its list of finished stages names, and then the list; remove what it names no more.

        The child may replace a file meanwhile. Then the digests of the list do not fit, and the stage is done again.
        """
        folder, below = super().work(job_id, fence), f"work/{job_id}/{fence}"
        kept, root = self._kept.setdefault((job_id, fence), {}), Root(folder)
        try:
            with root.open(folder / STAGES_FILE) as file:
                state = file.read(MOST_STATE_BYTES)
            names = {name for outputs in json.loads(state)["stages"].values() for name in outputs}
            for name in names:
                with root.open(folder / name) as file:
                    status = os.fstat(file.fileno())
                    seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                    if kept.get(name) != seen:
                        self._bucket.put(f"{below}/{name}", file)
                        kept[name] = seen
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return  # nothing is finished, or a file was replaced: the next message comes after that
        self._bucket.put(f"{below}/{STAGES_FILE}", state)
        self._bucket.delete([f"{below}/{name}" for name in kept.keys() - names])
        self._kept[job_id, fence] = {name: kept[name] for name in names}
        for attempt in self._bucket.folders(f"work/{job_id}"):
            if attempt.isdecimal() and int(attempt) < fence:
                self._bucket.delete_below(f"work/{job_id}/{attempt}")

    def leave_work(self, job_id: UUID, fence: int) -> None:
        """Remove the job's folder from this machine, unless another attempt is here."""
        self._kept.pop((job_id, fence), None)
        self._unlock(job_id, fence)
        self._remove_abandoned_work()

    def _unlock(self, job_id: UUID, fence: int) -> None:
        with suppress(KeyError):
            os.close(self._locks.pop((job_id, fence)))

    def _remove_abandoned_work(self) -> None:
        """Remove the folders of jobs that no process of this machine computes: a killed one has left them."""
        for folder in (self._root / "work").glob("*-*/"):
            with suppress(OSError):
                lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)

    def copy_candidate(self, job_id: UUID, fence: int, target: Path) -> None:
        """Copy its objects: a key is no link."""
        self._fetch_all(f"work/{job_id}/{fence}/candidate", target)

    def jobs_present(self) -> list[UUID]:
        """The jobs that have objects."""
        names = {*self._bucket.folders("work"), *self._bucket.folders("certified")}
        return [UUID(name) for name in names if ID.fullmatch(name)]

    def discard_job(self, job_id: UUID) -> None:
        """Remove its objects, and what this machine has staged."""
        for below in (f"work/{job_id}", f"certified/{job_id}"):
            self._bucket.delete_below(below)
        shutil.rmtree(self._root / "staging" / str(job_id), ignore_errors=True)


def _lock(folder: Path, how: int) -> int:
    """A lock on a folder; returns the descriptor that holds it.

    Raises:
        OSError: There is no such folder, or another process holds a lock that excludes this one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
