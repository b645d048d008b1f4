"""The interface of a storage. A release folder has the digest of its manifest as its name, and never changes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID


class Storage(Protocol):
    """Keeps release folders, reference texts, the working folders of jobs, and a ledger.

    Restoring an older backup of the database does not undo the ledger.
    """

    def work(self, job_id: UUID, fence: int) -> Path:
        """The working folder of one attempt: checkpoints, adapter, candidate. Created if missing.

        Each attempt has a folder of its own. So an attempt that has lost its lease without noticing does not write into
        the files of the next one.
        """
        ...

    def candidate(self, job_id: UUID, fence: int) -> Path:
        """The folder in an attempt's working folder that holds, under `model/`, the merged model until publication."""
        ...

    def copy_candidate(self, job_id: UUID, fence: int, target: Path) -> None:
        """Copy the candidate of an attempt to `target`, which is made. No link is followed.

        Raises:
            NotAFile: It has something other than plain files and folders.
        """
        ...

    def certified(self, job_id: UUID, certificate: str) -> Path:
        """Where control keeps the files that a certificate lists (its hex sha256), until publication."""
        ...

    def staging(self, name: str) -> Path:
        """An empty folder in which a release is assembled. Removes an earlier folder of this name."""
        ...

    def publish(self, staged: Path, digest: str) -> Path:
        """Make a staged folder durable and give it its final name in one step. Idempotent."""
        ...

    def release(self, digest: str) -> Path:
        """The published folder with this digest."""
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

    def releases(self) -> list[Path]:
        """Every release folder, whether a version names it or not."""
        ...

    def discard_job(self, job_id: UUID) -> None:
        """Remove a job's working folder and its staging folder."""
        ...

    def leftovers(self, *, older_than: float) -> list[Path]:
        """Staged folders and reference texts unchanged for `older_than` seconds: in use, or left behind by a crash."""
        ...

    def set_aside_before(self, *, older_than: float) -> list[Path]:
        """Folders that `set_aside` made more than `older_than` seconds ago and that still exist."""
        ...

    def set_aside(self, path: Path) -> Path:
        """Move a folder or file of the storage away in one step; return the folder that is to be removed."""
        ...

    def restore_set_aside(self, doomed: Path) -> None:
        """Move release folders that were set aside back to their places."""
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

    def add_purged(self, request_id: UUID, epoch: UUID | None) -> None:
        """Enter a purged request and the epoch of its data key into the ledger, durably. Idempotent."""
        ...

    def purged(self) -> list[UUID]:
        """Every purged request in the ledger."""
        ...

    def purged_epochs(self) -> list[UUID]:
        """Every epoch of which the ledger has a purged request, whether its key still exists or not."""
        ...
