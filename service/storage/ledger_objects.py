"""A ledger of objects: small ones, which each reader lists, and reads if they are new to it."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from service.audit.manifest import list_paths
from service.bucket import Bucket, Object
from service.storage.local import ID, LocalStorage, known_reason


class LedgerObjects(LocalStorage):
    """Storage whose ledger is in a bucket."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        """Use `bucket`, and the folder `root`, which has nothing of its own and is made if it is missing."""
        super().__init__(root)
        self._bucket, self._reading = bucket, threading.Lock()
        self._known: dict[str, dict[str, tuple[Object, str]]] = {}  # key -> what was below it when it was last read

    def has_published(self, model: str, number: int) -> bool:
        """Whether there is an object."""
        return self._bucket.has(f"ledger/published/{model}/{number}")

    def published(self) -> dict[tuple[str, int], str]:
        """The objects by their names."""
        entries = self._contents("ledger/published")
        return {_version(path): digest for path, (_, digest) in entries.items()}

    def withdrawn(self) -> dict[tuple[str, int], str]:
        """The objects by their names."""
        entries = self._contents("ledger/withdrawn")
        reasons = {_version(path): known_reason(content.encode()) for path, (_, content) in entries.items()}
        return {version: reason for version, reason in reasons.items() if reason}

    def refused_withdrawals(self) -> int:
        """How many objects have no known code as their content."""
        entries = self._contents("ledger/withdrawn").values()
        return sum(known_reason(content.encode()) is None for _, content in entries)

    def purged(self) -> list[UUID]:
        """The names of the objects."""
        return _ids(self._bucket.objects("ledger/purged"))

    def purged_epochs(self) -> list[UUID]:
        """The names of the objects."""
        return _ids(self._bucket.objects("ledger/purged-epochs"))

    def note_scrubbed(self, digest: str, damaged: Sequence[str]) -> None:
        """Write the paths of the damaged files, one a line, into an object of the release's name."""
        self._bucket.put(f"scrubbed/{digest}", "".join(f"{path}\n" for path in damaged).encode())

    def scrubbed(self) -> dict[str, tuple[float, list[str]]]:
        """Digest -> age and lines of its object."""
        return {digest: (of.age, lines.splitlines()) for digest, (of, lines) in self._contents("scrubbed").items()}

    def forget_scrubbed(self, digest: str) -> None:
        """Remove its object."""
        self._bucket.delete([f"scrubbed/{digest}"])

    def _add_to_ledger(self, entry: Path, content: str) -> None:
        self._bucket.put(f"ledger/{entry}", content.encode())

    def _contents(self, below: str) -> dict[str, tuple[Object, str]]:
        """Path -> the small objects below a key, with their contents. What this process has read is read once."""
        with self._reading:
            before, contents = self._known.get(below, {}), {}
            for path, of in self._bucket.objects(below).items():
                if path in before and before[path][0] == of:
                    contents[path] = before[path]
                    continue
                with suppress(FileNotFoundError):  # removed since
                    contents[path] = (of, self._bucket.get(f"{below}/{path}").decode(errors="replace"))
            self._known[below] = contents
            return contents

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


def _version(path: str) -> tuple[str, int]:
    """Model and number in `<model>/<number>`."""
    model, _, number = path.rpartition("/")
    return model, int(number)


def _ids(objects: dict[str, Object]) -> list[UUID]:
    return [UUID(name) for name in objects if ID.fullmatch(name)]
