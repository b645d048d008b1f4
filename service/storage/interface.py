"""What a storage does. A release folder is named by the digest of its manifest and never changes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from uuid import UUID


class Storage(Protocol):
    """Keeps release folders, corpora and the working folders of jobs."""

    def work(self, job_id: UUID) -> Path:
        """The job's working folder, made if missing: checkpoints, adapter, candidate."""
        ...

    def candidate(self, job_id: UUID) -> Path:
        """Where in the working folder the merged model waits to be published, under `model/`."""
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

    def add_corpus(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Keep a corpus under the sha256 of its bytes; returns it and the number of lines."""
        ...

    def corpus(self, digest: str) -> Path:
        """The file of a corpus."""
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
