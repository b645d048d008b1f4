"""Storage in a folder, on a file system that all parts of the service share:

versions/<digest>/   published release folders
corpora/<sha256>     reference texts (retain and held-out text), JSON lines
staging/<name>/      releases that are being assembled, and control's certified copies of candidates
work/<job>/<fence>/  checkpoints, adapter, candidate of an attempt: personal data, removed after the job. Compute writes
                     here: the rest of the service copies from it, and neither links to it nor writes into it
ledger/published/<model>/<number>   the digest of a version that the database has committed
ledger/withdrawn/<model>/<number>   the reason for which the version is no longer handed out
ledger/purged/<request>             a request whose texts are gone for good
ledger/purged-epochs/<epoch>        the epoch of such a request: its key is to be destroyed, whatever the database knows
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from service.confined import copy_plain
from service.domain.states import WITHDRAWAL_REASONS
from service.failpoints import reach
from service.files import age_seconds, fsync, write_atomically
from service.storage.interface import StoredFile

LEDGER = ("ledger/published", "ledger/purged", "ledger/purged-epochs", "ledger/withdrawn")
FOLDERS = ("versions", "corpora", "staging", "work", "scrubbed", *LEDGER)
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PART, DOOMED = 1 << 20, "doomed-"  # bytes; prefix of staging folders of what is to be removed


class LocalStorage:
    """Storage in one folder."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """Use the folder `root`. Create it and its folders if missing, unless `create` is false."""
        self._root = root.resolve()
        for name in FOLDERS if create else ():
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def work(self, job_id: UUID, fence: int) -> Path:
        """The working folder of one attempt, created if missing."""
        folder = self._root / "work" / str(job_id) / str(fence)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
        return folder

    def keep_work(self, job_id: UUID, fence: int) -> None:
        """Nothing is to be done: everybody has the folder."""

    def leave_work(self, job_id: UUID, fence: int) -> None:
        """Nothing is to be done: the folder is the one that the others read."""

    def candidate(self, job_id: UUID, fence: int) -> Path:
        """The merged model of an attempt, until publication."""
        return self._root / "work" / str(job_id) / str(fence) / "candidate"

    def copy_candidate(self, job_id: UUID, fence: int, target: Path) -> None:
        """Copy without following any link: whoever computes may be writing there."""
        copy_plain(self._root / "work", self.candidate(job_id, fence), target)

    def keep_certified(self, job_id: UUID, certificate: str, folder: Path) -> None:
        """Rename it."""
        folder.rename(self.certified(job_id, certificate))

    def certified(self, job_id: UUID, certificate: str) -> Path:
        """A folder beside the job's staging folders."""
        return self._root / "staging" / str(job_id) / certificate

    def staging(self, name: str) -> Path:
        """An empty folder in which a release is assembled."""
        folder = self._root / "staging" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(self, staged: Path, digest: str) -> None:
        """Sync every file and folder, then rename. If the name exists, its content is the same, but for a delta."""
        for folder, _, names in os.walk(staged):
            for name in (*names, ""):
                fsync(Path(folder, name))
        final = self._root / "versions" / digest
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staged)
        fsync(final.parent)

    def release(self, digest: str) -> Path:
        """The published folder with this digest."""
        return self._root / "versions" / digest

    def file(self, digest: str, path: str) -> Path:
        """A file in the folder of a release."""
        return self._root / "versions" / digest / path

    def address(self, digest: str, path: str) -> str | None:  # of the interface
        """None: the API sends its files."""
        return None

    def parts(self, digest: str, path: str, places: range | None = None) -> Iterator[bytes]:
        """Read the file."""
        with self.file(digest, path).open("rb") as file:
            file.seek(places.start if places else 0)
            left = os.fstat(file.fileno()).st_size if places is None else len(places)
            while part := file.read(min(PART, left)):
                left -= len(part)
                yield part

    def files(self, digest: str) -> dict[str, StoredFile]:
        """The files in the folder of a release."""
        folder, now = self._root / "versions" / digest, time.time()
        stored = {}
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # weights that are removed just now
                if stat.S_ISREG((status := path.stat()).st_mode):
                    stored[path.relative_to(folder).as_posix()] = StoredFile(status.st_size, now - status.st_mtime)
        return stored

    def add_file(self, digest: str, path: str, source: Path) -> None:
        """Sync and rename it."""
        fsync(source)
        target = self.file(digest, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        fsync(target.parent)

    def remove_files(self, digest: str, paths: Iterable[str]) -> None:
        """Rename them into a staging folder, and remove that: a file goes in one step, however large it is."""
        doomed = self.staging(f"collected-{uuid4()}")
        try:
            for file in (self.file(digest, path) for path in paths):
                if file.is_file():
                    file.rename(doomed / uuid4().hex)
                    reach("collect.renamed")
        finally:
            shutil.rmtree(doomed, ignore_errors=True)

    def drop_copy(self, digest: str) -> bool:  # of the interface
        """False: there are no copies."""
        return False

    def mark_used(self, releases: Iterable[Path]) -> None:
        """Nothing: there are no copies."""

    def releases(self) -> dict[str, float]:
        """Every folder under `versions/`."""
        return {path.name: age_seconds(path) for path in sorted((self._root / "versions").iterdir())}

    def jobs_present(self) -> list[UUID]:
        """The jobs that have a working folder."""
        return self._ids("work")

    def add_reference_texts(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Write the lines to a temporary file, hash them, and rename the file to the digest."""
        temporary, digest, count = self._root / "corpora" / f".{uuid4()}", hashlib.sha256(), 0
        try:
            with temporary.open("wb") as handle:
                for line in lines:
                    handle.write(line)
                    digest.update(line)
                    count += 1
                handle.flush()
                os.fsync(handle.fileno())
            temporary.rename(self._root / "corpora" / digest.hexdigest())
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), count

    def reference_texts(self, digest: str) -> Path:
        """The file of retain or held-out text with this digest."""
        return self._root / "corpora" / digest

    def reference_text_digests(self) -> list[str]:
        """The names of the files, without those that are being written."""
        return sorted(path.name for path in (self._root / "corpora").iterdir() if not path.name.startswith("."))

    def discard_job(self, job_id: UUID) -> None:
        """Remove a job's working folder and its staging folder."""
        shutil.rmtree(self._root / "work" / str(job_id), ignore_errors=True)
        shutil.rmtree(self._root / "staging" / str(job_id), ignore_errors=True)

    def leftovers(self, *, older_than: float) -> list[str]:
        """Staged folders and reference texts of this age, without the folders that `set_aside` made."""
        paths = [*(self._root / "staging").iterdir(), *(self._root / "corpora").iterdir()]
        old = [path for path in paths if not path.name.startswith(DOOMED) and age_seconds(path) > older_than]
        return [str(path.relative_to(self._root)) for path in old]

    def set_aside(self, name: str) -> str:
        """Rename it into a new staging folder."""
        path = self._root / name if "/" in name else self.release(name)
        doomed = self.staging(f"{DOOMED}{uuid4()}")
        path.rename(doomed / path.name)
        return doomed.name

    def set_aside_before(self, *, older_than: float) -> list[str]:
        """Folders of this age that `set_aside` made."""
        return [path.name for path in (self._root / "staging").glob(f"{DOOMED}*") if age_seconds(path) > older_than]

    def releases_aside(self, doomed: str) -> list[str]:
        """The folders in it; it is empty if another process removed it."""
        return [path.name for path in (self._root / "staging" / doomed).glob("*") if path.is_dir()]

    def restore_set_aside(self, doomed: str) -> None:
        """Rename the folders back, unless they were published again in the meantime."""
        for name in self.releases_aside(doomed):
            if not self.release(name).exists():
                (self._root / "staging" / doomed / name).rename(self.release(name))

    def remove_set_aside(self, doomed: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self._root / "staging" / doomed, ignore_errors=True)

    def add_published(self, model: str, number: int, digest: str) -> None:
        """Enter a version into the ledger."""
        self._add_to_ledger(Path("published", model, str(number)), digest)

    def has_published(self, model: str, number: int) -> bool:
        """Whether the ledger has this version."""
        return (self._root / "ledger" / "published" / model / str(number)).exists()

    def published(self) -> dict[tuple[str, int], str]:
        """(model, number) -> digest."""
        entries = (self._root / "ledger" / "published").glob("*/[0-9]*")
        return {(path.parent.name, int(path.name)): path.read_text() for path in entries}

    def add_withdrawn(self, model: str, number: int, reason: str) -> None:
        """Enter the withdrawal of a version into the ledger."""
        self._add_to_ledger(Path("withdrawn", model, str(number)), reason)

    def withdrawn(self) -> dict[tuple[str, int], str]:
        """(model, number) -> reason."""
        entries = ((path, _reason_in(path)) for path in self._withdrawals())
        return {(path.parent.name, int(path.name)): reason for path, reason in entries if reason}

    def note_scrubbed(self, digest: str, damaged: Sequence[str]) -> None:
        """Write the paths of the damaged files, one a line, into a file of the release's name."""
        write_atomically(self._root / "scrubbed" / digest, "".join(f"{path}\n" for path in damaged))

    def scrubbed(self) -> dict[str, tuple[float, list[str]]]:
        """Digest -> age and lines of its file."""
        entries = (self._root / "scrubbed").glob("[0-9a-f]*")
        return {path.name: (age_seconds(path), path.read_text().splitlines()) for path in entries}

    def forget_scrubbed(self, digest: str) -> None:
        """Remove its file."""
        (self._root / "scrubbed" / digest).unlink(missing_ok=True)

    def refused_withdrawals(self) -> int:
        """How many files have no known code as their content."""
        return sum(_reason_in(path) is None for path in self._withdrawals())

    def _withdrawals(self) -> Iterator[Path]:
        return (self._root / "ledger" / "withdrawn").glob("*/[0-9]*")

    def add_purged_epoch(self, epoch: UUID) -> None:
        """Enter an epoch into the ledger."""
        self._add_to_ledger(Path("purged-epochs", str(epoch)), "")

    def add_purged(self, request_id: UUID, epoch: UUID | None) -> None:
        """Enter a purged request into the ledger, and before it the epoch whose key wraps its data key."""
        if epoch is not None:
            self.add_purged_epoch(epoch)
        self._add_to_ledger(Path("purged", str(request_id)), "")

    def purged(self) -> list[UUID]:
        """Every purged request."""
        return self._ids("ledger/purged")

    def purged_epochs(self) -> list[UUID]:
        """The epochs of purged requests."""
        return self._ids("ledger/purged-epochs")

    def _ids(self, folder: str) -> list[UUID]:
        """The ids that a folder has entries of. Other names are none of ours: `lost+found`, what a crash left."""
        return [UUID(path.name) for path in (self._root / folder).iterdir() if ID.fullmatch(path.name)]

    def _add_to_ledger(self, entry: Path, content: str) -> None:
        """Write a file of the ledger, whole or not at all."""
        path = self._root / "ledger" / entry
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _reason_in(path: Path) -> str | None:
    with path.open("rb") as handle:
        return known_reason(handle.read(100))


def known_reason(content: bytes) -> str | None:
    """The code that an entry of a withdrawal is; None if it is anything else."""
    return next((reason for reason in WITHDRAWAL_REASONS if reason.encode() == content), None)
