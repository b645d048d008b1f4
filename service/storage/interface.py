"""The interface of a storage. A release folder has the digest of its manifest as its name, and never changes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import UUID

STAGES_FILE = "stages.json"  # in a working folder: what the attempt has finished, {"stages": {stage: {path: sha256}}}


class StoredFile(NamedTuple):
    """What storage says of a file that it has."""

    size: int  # bytes
    age: float  # seconds since it was written


class Storage(Protocol):
    """Keeps release folders, reference texts, the working folders of jobs, and a ledger.

    Restoring an older backup of the database does not undo the ledger. Every path that a method returns is on a disk of
    this machine: the file of storage itself, or a copy that was made for the caller.
    """

    def work(self, job_id: UUID, fence: int) -> Path:
        """The working folder of one attempt: checkpoints, adapter, candidate. Created if missing.

        Each attempt has a folder of its own. So an attempt that has lost its lease without noticing does not write into
        the files of the next one. The folders of earlier attempts, or the last complete one, lie beside it.
        """
        ...

    def keep_work(self, job_id: UUID, fence: int) -> None:
        """Let whoever comes next have the files of the stages that an attempt has finished."""
        ...

    def leave_work(self, job_id: UUID, fence: int) -> None:
        """Release the working folder of an attempt: this machine computes nothing more in it."""
        ...

    def copy_candidate(self, job_id: UUID, fence: int, target: Path) -> None:
        """Copy the candidate of an attempt to `target`, which is made. No link is followed.

        Raises:
            NotAFile: It has something other than plain files and folders.
        """
        ...

    def keep_certified(self, job_id: UUID, certificate: str, folder: Path) -> None:
        """Keep a staged folder with the files that a certificate lists (its hex sha256), until publication."""
        ...

    def certified(self, job_id: UUID, certificate: str) -> Path:
        """The folder that was kept with a certificate; it may be gone."""
        ...

    def staging(self, name: str) -> Path:
        """An empty folder in which a release is assembled. Removes an earlier folder of this name."""
        ...

    def publish(self, staged: Path, digest: str) -> None:
        """Make a staged folder durable and give it its final name in one step. Idempotent."""
        ...

    def release(self, digest: str) -> Path:
        """The published folder with this digest, with every file that storage has of it."""
        ...

    def file(self, digest: str, path: str) -> Path:
        """A file of a release; it may be missing."""
        ...

    def address(self, digest: str, path: str) -> str | None:
        """A URL at which whoever has it can read a file of a release for a while; None if storage gives none.

        Raises:
            FileNotFoundError: It would give one, but the file is missing.
        """
        ...

    def parts(self, digest: str, path: str, places: range | None = None) -> Iterator[bytes]:
        """The bytes of a file of a release as storage has it now, or those at some places, part by part.

        Raises:
            OSError: It is missing, or cannot be read.
        """
        ...

    def files(self, digest: str) -> dict[str, StoredFile]:
        """Path -> what storage has now of a release; empty if there is no such release."""
        ...

    def add_file(self, digest: str, path: str, source: Path) -> None:
        """Move a file durably into a release that lacks it, in one step."""
        ...

    def remove_files(self, digest: str, paths: Iterable[str]) -> None:
        """Remove files of a release, each in one step; those that are missing are fine."""
        ...

    def drop_copy(self, digest: str) -> bool:
        """Remove this machine's copy of a release or of reference texts; false if the folder is storage itself."""
        ...

    def mark_used(self, releases: Iterable[Path]) -> None:
        """Keep this machine's copies of these release folders for now: somebody reads them."""
        ...

    def add_reference_texts(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Store retain or held-out text under the sha256 of its bytes; return the digest and the number of lines."""
        ...

    def reference_texts(self, digest: str) -> Path:
        """The file of retain or held-out text with this digest."""
        ...

    def jobs_present(self) -> list[UUID]:
        """The jobs that have a working folder."""
        ...

    def releases(self) -> dict[str, float]:
        """Digest of every release, whether a version names it or not -> its age in seconds."""
        ...

    def discard_job(self, job_id: UUID) -> None:
        """Remove what storage has of a job: working folders, and what was certified but not published."""
        ...

    def reference_text_digests(self) -> list[str]:
        """The digests of all reference texts."""
        ...

    def leftovers(self, *, older_than: float) -> list[str]:
        """Names of other things unchanged for `older_than` seconds: in use (a reference text), or left by a crash."""
        ...

    def set_aside(self, name: str) -> str:
        """Take a release (by its digest) or a leftover away, or remove it; returns a name for what was set aside."""
        ...

    def set_aside_before(self, *, older_than: float) -> list[str]:
        """The names of what was set aside more than `older_than` seconds ago and still exists."""
        ...

    def releases_aside(self, doomed: str) -> list[str]:
        """The digests of the releases among what was set aside under a name."""
        ...

    def restore_set_aside(self, doomed: str) -> None:
        """Bring releases that were set aside back, unless they were published again."""
        ...

    def remove_set_aside(self, doomed: str) -> None:
        """Remove for good what was set aside."""
        ...

    def add_published(self, model: str, number: int, digest: str) -> None:
        """Enter a version into the ledger. Idempotent."""
        ...

    def has_published(self, model: str, number: int) -> bool:
        """Whether the ledger has this version."""
        ...

    def published(self) -> dict[tuple[str, int], str]:
        """(model, number) -> digest of every version in the ledger."""
        ...

    def add_withdrawn(self, model: str, number: int, reason: str) -> None:
        """Enter the withdrawal of a version into the ledger. Idempotent."""
        ...

    def withdrawn(self) -> dict[tuple[str, int], str]:
        """(model, number) -> reason of every withdrawal in the ledger."""
        ...

    def note_scrubbed(self, digest: str, damaged: Sequence[str]) -> None:
        """Remember that every file of a release was hashed just now, and which ones differ from what was published."""
        ...

    def scrubbed(self) -> dict[str, tuple[float, list[str]]]:
        """Digest of a release -> the seconds since it was hashed, and its damaged files."""
        ...

    def forget_scrubbed(self, digest: str) -> None:
        """Remove the memory of a release that is no more."""
        ...

    def refused_withdrawals(self) -> int:
        """How many withdrawals in the ledger are not believed, because their reason is no known code."""
        ...

    def add_purged_epoch(self, epoch: UUID) -> None:
        """Enter the epoch of a purged request into the ledger, durably. Idempotent."""
        ...

    def add_purged(self, request_id: UUID, epoch: UUID | None) -> None:
        """Enter a purged request and the epoch of its data key into the ledger, durably. Idempotent."""
        ...

    def purged(self) -> list[UUID]:
        """Every purged request in the ledger."""
        ...

    def purged_epochs(self) -> list[UUID]:
        """Every epoch of which the ledger has a purged request, whether its key still exists or not."""
        ...
