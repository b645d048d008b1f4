"""Storage in a bucket. Each machine has a folder of its own for what it works on, and for copies of releases:

entries/<digest>              the name of the folder in `data` with the release's files; written last, and only over
                              what was read; empty once the release was taken away
data/<name>/<path>            the files of a release; each upload has a name of its own
corpora/<sha256>              reference texts
work/<job>/<fence>/<path>     what an attempt has finished: checkpoints, adapter, candidate
certified/<job>/<sha256>/     control's copy of a candidate, until publication
doomed/<name>/<digest>        an entry that was taken away, until its files are removed
ledger/, scrubbed/            as in a folder

Objects are written whole, and what is read is what was written last. So the one write that makes a release, or takes it
away, is that of its entry.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from service.audit.manifest import DELTA_FOLDER, list_paths
from service.bucket import Bucket, Object
from service.failpoints import reach
from service.files import age_seconds
from service.storage.interface import StoredFile
from service.storage.local import DOOMED
from service.storage.work_objects import WorkObjects

if TYPE_CHECKING:
    from obstore import UpdateVersion

UNUSED_SECONDS = 86_400  # seconds for which a copy that nobody reads stays, though the disk is full
MOST_FULL = 0.8  # of the disk; above it copies make room for others


class ObjectStorage(WorkObjects):
    """Storage in a bucket, with a folder of this machine."""

    def __init__(self, root: Path, bucket: Bucket, *, presign_seconds: int = 0, create: bool = True) -> None:
        """Use `bucket`, and the folder `root`. With `presign_seconds` files are handed out by the bucket itself."""
        super().__init__(root, bucket, create=create)
        self._presign_seconds = presign_seconds
        if create:
            self._remove_old_staging()

    def keep_certified(self, job_id: UUID, certificate: str, folder: Path) -> None:
        """Upload its files."""
        self._put_all(f"certified/{job_id}/{certificate}", folder)
        folder.rename(super().certified(job_id, certificate))

    def certified(self, job_id: UUID, certificate: str) -> Path:
        """This machine's copy."""
        folder = super().certified(job_id, certificate)
        if not folder.exists():
            fetched = self.staging(f"fetch-{uuid4()}")
            self._fetch_all(f"certified/{job_id}/{certificate}", fetched / "copy")
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # nothing was kept
                (fetched / "copy").rename(folder)
            shutil.rmtree(fetched)
        return folder

    def _remove_old_staging(self) -> None:
        """Remove what killed processes have staged on this machine. What they certified is in the bucket."""
        for left in (self._root / "staging").iterdir():
            with suppress(FileNotFoundError):
                if age_seconds(left) > UNUSED_SECONDS:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def publish(self, staged: Path, digest: str) -> None:
        """Upload its files, then write its entry, if nobody has; this machine keeps the folder as a copy.

        An entry whose files are not all there is replaced. The delta may differ: whoever came first has his.
        """
        before, version = self._entry(digest)
        stored = self._objects(before)
        needed = [path for path in list_paths(staged) if not path.startswith(DELTA_FOLDER)]
        lacks = (path not in stored or stored[path].size != (staged / path).stat().st_size for path in needed)
        if not before or any(lacks):
            name = uuid4().hex
            self._put_all(f"data/{name}", staged)
            if not self._bucket.replace(f"entries/{digest}", name.encode(), version):
                self._bucket.delete_below(f"data/{name}")  # somebody else published the same
        super().publish(staged, digest)

    def release(self, digest: str) -> Path:
        """This machine's copy, completed."""
        folder, name = super().release(digest), self._entry(digest)[0]
        stored, copied = self._objects(name), super().files(digest)
        missing = [path for path, of in stored.items() if path not in copied or copied[path].size != of.size]
        self._make_room(sum(stored[path].size for path in missing), keep=folder)
        for path in missing:
            self._fetch(f"data/{name}/{path}", folder / path)
        if not stored:
            shutil.rmtree(folder, ignore_errors=True)
        self.mark_used([folder])
        return folder

    def file(self, digest: str, path: str) -> Path:
        """This machine's copy."""
        file = super().file(digest, path)
        if not file.is_file():
            with suppress(FileNotFoundError):
                self._fetch(f"{self._below(digest)}/{path}", file)
        self.mark_used([super().release(digest)])
        return file

    def address(self, digest: str, path: str) -> str | None:
        """A presigned URL, if the settings allow it."""
        if not self._presign_seconds:
            return None
        key = f"{self._below(digest)}/{path}"
        if not self._bucket.has(key):
            raise FileNotFoundError(errno.ENOENT, "no such object")
        return self._bucket.address(key, self._presign_seconds)

    def parts(self, digest: str, path: str, places: range | None = None) -> Iterator[bytes]:
        """Read the object."""
        yield from self._bucket.parts(f"{self._below(digest)}/{path}", places)

    def files(self, digest: str) -> dict[str, StoredFile]:
        """List its objects."""
        name, _ = self._entry(digest)
        return {path: StoredFile(of.size, of.age) for path, of in self._objects(name).items()}

    def add_file(self, digest: str, path: str, source: Path) -> None:
        """Upload it, and keep it as this machine's copy."""
        with source.open("rb") as file:
            self._bucket.put(f"{self._below(digest)}/{path}", file)
        super().add_file(digest, path, source)

    def remove_files(self, digest: str, paths: Iterable[str]) -> None:
        """Remove the objects. Copies on other machines go when their room is needed."""
        name, _ = self._entry(digest)
        for path in paths if name else ():
            self._bucket.delete([f"data/{name}/{path}"])
            super().file(digest, path).unlink(missing_ok=True)
            reach("collect.renamed")

    def drop_copy(self, digest: str) -> bool:
        """Remove the folder or the file."""
        shutil.rmtree(super().release(digest), ignore_errors=True)
        super().reference_texts(digest).unlink(missing_ok=True)
        return True

    def mark_used(self, releases: Iterable[Path]) -> None:
        """Give the copies the time of now."""
        for folder in releases:
            with suppress(FileNotFoundError):
                os.utime(folder)

    def releases(self) -> dict[str, float]:
        """Every entry that names files."""
        return {digest: of.age for digest, of in self._bucket.objects("entries").items() if of.size}

    def _entry(self, digest: str) -> "tuple[str, UpdateVersion | None]":
        """The folder in `data` with the files of a release, empty if there is none; and what replaces the entry."""
        with suppress(FileNotFoundError):
            content, version = self._bucket.get_with_version(f"entries/{digest}")
            return content.decode(), version
        return "", None

    def _objects(self, name: str) -> dict[str, Object]:
        """The files in a folder of `data`; none if there is no name."""
        return self._bucket.objects(f"data/{name}") if name else {}

    def _below(self, digest: str) -> str:
        """The beginning of the keys of a release's files.

        Raises:
            FileNotFoundError: There is no such release.
        """
        name, _ = self._entry(digest)
        if not name:
            raise FileNotFoundError(errno.ENOENT, "no such release")
        return f"data/{name}"

    def _make_room(self, size: int, keep: Path) -> None:
        """Remove copies of releases that nobody has used for a day, oldest first, if the disk would be too full."""
        ages = {}
        for folder in (self._root / "versions").iterdir():
            with suppress(FileNotFoundError):  # another process needs room
                ages[folder] = age_seconds(folder)
        for folder in sorted(ages, key=ages.__getitem__, reverse=True):
            disk = shutil.disk_usage(self._root)
            if ages[folder] < UNUSED_SECONDS or disk.used + size < MOST_FULL * disk.total:
                return
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def add_reference_texts(self, lines: Iterable[bytes]) -> tuple[str, int]:
        """Write them into a file of this machine, and upload it."""
        digest, count = super().add_reference_texts(lines)
        with super().reference_texts(digest).open("rb") as file:
            self._bucket.put(f"corpora/{digest}", file)
        return digest, count

    def reference_text_digests(self) -> list[str]:
        """The names of the objects."""
        return sorted(self._bucket.objects("corpora"))

    def reference_texts(self, digest: str) -> Path:
        """This machine's copy."""
        file, key = super().reference_texts(digest), f"corpora/{digest}"
        if not self._bucket.has(key):
            file.unlink(missing_ok=True)
        elif not file.is_file():
            self._fetch(key, file)
        return file

    def leftovers(self, *, older_than: float) -> list[str]:
        """What this machine has staged, reference texts, and uploads that no entry names."""
        objects = self._bucket.objects("data")  # before the entries: an upload may get its entry meanwhile
        named = self._named()
        ages: dict[str, float] = {}
        for path, of in objects.items():
            name = path.partition("/")[0]
            ages[name] = min(of.age, ages.get(name, of.age))
        staged = [name for name in super().leftovers(older_than=older_than) if name.startswith("staging/")]
        texts = [f"corpora/{digest}" for digest, of in self._bucket.objects("corpora").items() if of.age > older_than]
        uploads = [f"data/{name}" for name, age in ages.items() if age > older_than and name not in named]
        return [*staged, *texts, *uploads]

    def _named(self) -> set[str]:
        """The folders in `data` that entries name, or named before they were taken away."""
        places = ("doomed", "entries", "doomed")  # one may move from the second to the first meanwhile, or back
        return {name for below in places for _, name in self._contents(below).values()}

    def set_aside(self, name: str) -> str:
        """Note a release's entry in `doomed`, and empty it, if it is still the same. Texts and uploads go at once."""
        if name.startswith("staging/"):
            return super().set_aside(name)
        doomed = f"{DOOMED}{uuid4()}"
        if name.startswith("corpora/"):
            self._bucket.delete([name])
        elif name.startswith("data/"):
            if name.removeprefix("data/") not in self._named():
                self._bucket.delete_below(name)
        else:
            data, version = self._entry(name)
            if data:
                self._bucket.put(f"doomed/{doomed}/{name}", data.encode())
                self._bucket.replace(f"entries/{name}", b"", version)
        return doomed

    def set_aside_before(self, *, older_than: float) -> list[str]:
        """Those of this machine, and those of the bucket."""
        old = {path.partition("/")[0] for path, of in self._bucket.objects("doomed").items() if of.age > older_than}
        return [*super().set_aside_before(older_than=older_than), *old]

    def releases_aside(self, doomed: str) -> list[str]:
        """The digests of its entries."""
        return [*self._bucket.objects(f"doomed/{doomed}")]

    def restore_set_aside(self, doomed: str) -> None:
        """Write the entries again, if they are empty and their files are there."""
        for digest in self.releases_aside(doomed):
            name = self._bucket.get(f"doomed/{doomed}/{digest}").decode()
            now, version = self._entry(digest)
            if not now and self._objects(name):
                self._bucket.replace(f"entries/{digest}", name.encode(), version)

    def remove_set_aside(self, doomed: str) -> None:
        """Remove the files of its entries, unless such an entry is back."""
        for digest in self.releases_aside(doomed):
            name = self._bucket.get(f"doomed/{doomed}/{digest}").decode()
            if self._entry(digest)[0] != name:
                self._bucket.delete_below(f"data/{name}")
            self._bucket.delete([f"doomed/{doomed}/{digest}"])
        super().remove_set_aside(doomed)
