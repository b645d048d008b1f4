"""A folder on a file system that all parts share:

versions/<digest>/   published release folders
corpora/<sha256>     retain and held-out texts, JSON lines
staging/<name>/      releases being put together
work/<job>/<fence>/  checkpoints, adapter, candidate of an attempt; derived from personal data, gone after the job
ledger/published/<model>/<number>   digest of a version that the database has committed
ledger/purged/<request>             a request whose texts are gone for good
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID, uuid4

from service.files import age_seconds, fsync, write_atomically

FOLDERS = ("versions", "corpora", "staging", "work", "ledger/published", "ledger/purged")
DOOMED = "doomed-"


class LocalStorage:
    """Storage in one folder."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """Use `root`, made if missing unless that is not wanted."""
        self._root = root.resolve()
        for name in FOLDERS if create else ():
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def work(self, job_id: UUID, fence: int) -> Path:
        """The working folder of one attempt."""
        folder = self._root / "work" / str(job_id) / str(fence)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
        return folder

    def candidate(self, job_id: UUID, fence: int) -> Path:
        """The merged model that waits to be published."""
        return self._root / "work" / str(job_id) / str(fence) / "candidate"

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
                fsync(Path(folder, name))
            fsync(Path(folder))
        final = self.release(digest)
        if final.exists():
            shutil.rmtree(staged)
        else:
            staged.rename(final)
        fsync(final.parent)
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

    def add_reference_texts(self, lines: Iterable[bytes]) -> tuple[str, int]:
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
            temporary.rename(self.reference_texts(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), count

    def reference_texts(self, digest: str) -> Path:
        """The file of retain or held-out text with this digest."""
        return self._root / "corpora" / digest

    def discard_job(self, job_id: UUID) -> None:
        """Remove the working and staging folders of a job."""
        shutil.rmtree(self._root / "work" / str(job_id), ignore_errors=True)
        shutil.rmtree(self._root / "staging" / str(job_id), ignore_errors=True)

    def leftovers(self, *, older_than: float) -> list[Path]:
        """Staged folders and corpora of before then, but not what is doomed."""
        found = [*(self._root / "staging").iterdir(), *(self._root / "corpora").iterdir()]
        return [path for path in found if not path.name.startswith(DOOMED) and age_seconds(path) > older_than]

    def set_aside_before(self, *, older_than: float) -> list[Path]:
        """Folders that `set_aside` made before then."""
        return [path for path in (self._root / "staging").glob(f"{DOOMED}*") if age_seconds(path) > older_than]

    def set_aside(self, path: Path) -> Path:
        """Rename it into a staging folder of its own."""
        doomed = self.staging(f"{DOOMED}{uuid4()}")
        path.rename(doomed / path.name)
        return doomed

    def restore_set_aside(self, doomed: Path) -> None:
        """Rename them back, unless they were made anew meanwhile."""
        for path in doomed.iterdir():
            if not self.release(path.name).exists():
                path.rename(self.release(path.name))

    def add_published(self, model: str, number: int, digest: str) -> None:
        """Enter a version into the ledger."""
        self._note(Path("published", model, str(number)), digest)

    def has_published(self, model: str, number: int) -> bool:
        """Whether the ledger has this version."""
        return (self._root / "ledger" / "published" / model / str(number)).exists()

    def published(self) -> dict[tuple[str, int], str]:
        """(model, number) -> digest."""
        entries = (self._root / "ledger" / "published").glob("*/[0-9]*")
        return {(path.parent.name, int(path.name)): path.read_text() for path in entries}

    def add_purged(self, request_id: UUID) -> None:
        """Enter a purged request into the ledger."""
        self._note(Path("purged", str(request_id)), "")

    def purged(self) -> list[UUID]:
        """Every purged request."""
        return [UUID(p.name) for p in (self._root / "ledger" / "purged").iterdir() if not p.name.startswith(".")]

    def _note(self, entry: Path, content: str) -> None:
        """Write a file of the ledger whole or not at all."""
        path = self._root / "ledger" / entry
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
