"""A ledger of objects, and the copies that a machine makes of objects."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from service.audit.manifest import list_paths
from service.bucket import Bucket, Object
from service.storage.local import LocalStorage


class LedgerObjects(LocalStorage):
    """Storage whose ledger is in a bucket; the folder of this machine has a copy, which readers bring up to date."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        """Use `bucket`, and the folder `root`, which has nothing of its own and is made if it is missing."""
        super().__init__(root)
        self._bucket, self._mirroring = bucket, threading.Lock()
        self._mirrored: dict[Path, Object] = {}

    def has_published(self, model: str, number: int) -> bool:
        """Whether there is an object."""
        return self._bucket.has(f"ledger/published/{model}/{number}")

    def published(self) -> dict[tuple[str, int], str]:
        """From a copy of the ledger."""
        self._mirror("ledger/published")
        return super().published()

    def withdrawn(self) -> dict[tuple[str, int], str]:
        """From a copy of the ledger."""
        self._mirror("ledger/withdrawn")
        return super().withdrawn()

    def refused_withdrawals(self) -> int:
        """From a copy of the ledger."""
        self._mirror("ledger/withdrawn")
        return super().refused_withdrawals()

    def purged(self) -> list[UUID]:
        """From a copy of the ledger."""
        self._mirror("ledger/purged")
        return super().purged()

    def purged_epochs(self) -> list[UUID]:
        """From a copy of the ledger."""
        self._mirror("ledger/purged-epochs")
        return super().purged_epochs()

    def note_scrubbed(self, digest: str, damaged: Sequence[str]) -> None:
        """Write the paths of the damaged files, one a line, into an object of the release's name."""
        self._bucket.put(f"scrubbed/{digest}", "".join(f"{path}\n" for path in damaged).encode())

    def scrubbed(self) -> dict[str, tuple[float, list[str]]]:
        """From copies, which have the times of the objects."""
        self._mirror("scrubbed")
        return super().scrubbed()

    def forget_scrubbed(self, digest: str) -> None:
        """Remove its object."""
        self._bucket.delete([f"scrubbed/{digest}"])

    def _add_to_ledger(self, entry: Path, content: str) -> None:
        self._bucket.put(f"ledger/{entry}", content.encode())

    def _mirror(self, below: str) -> None:
        """Make the files below a folder of this machine those of the bucket, with their times."""
        folder, objects = self._root / below, self._bucket.objects(below)
        with self._mirroring:
            for path in [path for path in folder.rglob("*") if path.is_file()]:
                if path.relative_to(folder).as_posix() not in objects:
                    path.unlink(missing_ok=True)
            for name, of in objects.items():
                path, written = folder / name, of.written.timestamp()
                if not path.is_file() or self._mirrored.get(path) != of:
                    with suppress(FileNotFoundError):  # removed since
                        self._fetch(f"{below}/{name}", path)
                        os.utime(path, (written, written))
                        self._mirrored[path] = of

    def _fetch(self, key: str, target: Path) -> None:
        self._bucket.fetch(key, target, self._root / "staging")

    def _fetch_all(self, below: str, target: Path) -> None:
        """Copy every object below a key."""
        for path in self._bucket.objects(below):
            self._fetch(f"{below}/{path}", target / path)

    def _put_all(self, below: str, folder: Path) -> None:
        """Upload every file of a folder that this service has made."""
        for path in list_paths(folder):
            with (folder / path).open("rb") as file:
                self._bucket.put(f"{below}/{path}", file)
