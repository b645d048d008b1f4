"""A folder on a file system that all parts share:

versions/<digest>/   published release folders
corpora/<sha256>     retain and held-out texts, JSON lines
staging/<name>/      releases being put together
work/<job>/          checkpoints, adapter, candidate; derived from personal data, gone after the job
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID, uuid4


class LocalStorage:
    """Storage in one folder."""

    def __init__(self, root: Path) -> None:
        """Use `root`, made if missing."""
        self._root = root.resolve()
        for name in ("versions", "corpora", "staging", "work"):
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def work(self, job_id: UUID) -> Path:
        """The job's working folder."""
        folder = self._root / "work" / str(job_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def candidate(self, job_id: UUID) -> Path:
        """The merged model that waits to be published."""
        return self.work(job_id) / "candidate"

    def staging(self, name: str) -> Path:
        """A fresh, empty folder."""
        folder = self._root / "staging" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(self, staged: Path, digest: str) -> Path:
        """Sync every file and folder, then rename; if the name is taken, its content is the same by digest."""
        for folder, _, names in os.walk(staged):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        final = self.release(digest)
        if final.exists():
            shutil.rmtree(staged)
        else:
            staged.rename(final)
            sync(final.parent)
        return final

    def release(self, digest: str) -> Path:
        """The published folder of that digest."""
        return self._root / "versions" / digest

    def releases(self) -> list[Path]:
        """Every folder under `versions/`."""
        return sorted((self._root / "versions").iterdir())

    def jobs_present(self) -> list[UUID]:
        """Jobs that have a working folder."""
        return [UUID(folder.name) for folder in (self._root / "work").iterdir()]

    def add_corpus(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Write, hash, rename."""
        temporary, digest, count = self._root / "corpora" / f".{uuid4()}", hashlib.sha256(), 0
        try:
            with temporary.open("wb") as handle:
                for line in lines:
                    handle.write(line)
                    digest.update(line)
                    count += 1
                handle.flush()
                os.fsync(handle.fileno())
            temporary.rename(self.corpus(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), count

    def corpus(self, digest: str) -> Path:
        """The file of a corpus."""
        return self._root / "corpora" / digest

    def discard_job(self, job_id: UUID) -> None:
        """Remove the working and staging folders of a job."""
        shutil.rmtree(self._root / "work" / str(job_id), ignore_errors=True)
        shutil.rmtree(self._root / "staging" / str(job_id), ignore_errors=True)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
