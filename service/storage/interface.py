"""What a storage does. A release folder is named by the digest of its manifest and never changes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from uuid import UUID


class Storage(Protocol):
    """Keeps release folders, corpora, the working folders of jobs, and a ledger that no database backup takes back."""

    def work(self, job_id: UUID, fence: int) -> Path:
        """The working folder of one attempt, made if missing: checkpoints, adapter, candidate.

        Each attempt has its own, so that one that lost its lease and does not know it writes into nobody's files.
        """
        ...

    def candidate(self, job_id: UUID, fence: int) -> Path:
        """Where in an attempt's working folder the merged model waits to be published, under `model/`."""
        ...

    def staging(self, name: str) -> Path:
        """A fresh, empty folder to assemble a release in; what lay there is gone."""
        ...

    def publish(self, staged: Path, digest: str) -> Path:
        """Make a staged folder durable and give it its final name in one step; twice is the same as once."""
        ...

    def release(self, digest: str) -> Path:
        """The published folder of that digest."""
        ...

    def add_reference_texts(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Keep retain or held-out text under the sha256 of its bytes; returns the digest and the number of lines."""
        ...

    def reference_texts(self, digest: str) -> Path:
        """The file of retain or held-out text with this digest."""
        ...

    def jobs_present(self) -> list[UUID]:
        """Jobs that have a working folder."""
        ...

    def releases(self) -> list[Path]:
        """Every release folder, published or left over."""
        ...

    def discard_job(self, job_id: UUID) -> None:
        """Remove the working and staging folders of a job."""
        ...

    def leftovers(self, *, older_than: float) -> list[Path]:
        """Staged folders and corpora that were not touched for `older_than` seconds: used now, or left by a crash."""
        ...

    def set_aside_before(self, *, older_than: float) -> list[Path]:
        """Folders that `set_aside` made longer ago, and that nobody has removed since."""
        ...

    def set_aside(self, path: Path) -> Path:
        """Take a folder or file of ours out of its place at once; returns the folder that is left to be removed."""
        ...

    def restore_set_aside(self, doomed: Path) -> None:
        """Put release folders that were taken out of their place back."""
        ...

    def add_published(self, model: str, number: int, digest: str) -> None:
        """Enter a version into the ledger; twice is the same as once."""
        ...

    def has_published(self, model: str, number: int) -> bool:
        """Whether the ledger has this version."""
        ...

    def published(self) -> dict[tuple[str, int], str]:
        """(model, number) -> digest of every version of the ledger."""
        ...

    def add_purged(self, request_id: UUID) -> None:
        """Enter a purged request into the ledger, durably; twice is the same as once."""
        ...

    def purged(self) -> list[UUID]:
        """Every purged request of the ledger."""
        ...
