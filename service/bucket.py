"""A bucket of an object storage, through obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Its credentials, region and endpoint are those of the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...), or of
the machine's role. A key is a path of names, such as `entries/0123`.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from service.domain.errors import StorageAway
from service.progress import step

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

PART = 8 << 20  # bytes of one read: each has its own time-out, and is tried again alone
MOST_PARTS = 9_000  # of an upload; S3 takes 10,000
TIMEOUTS: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=25),
    "allow_http": True,
}
RETRIES: "RetryConfig" = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


class Object(NamedTuple):
    """An object in a listing."""

    size: int  # bytes
    written: datetime
    etag: str | None  # differs if the content differs

    @property
    def age(self) -> float:
        """The seconds since it was written, by the clock of this machine."""
        return (datetime.now(UTC) - self.written).total_seconds()


class Bucket:
    """Objects below one URL. A missing object is a `FileNotFoundError`, and a failed call a `StorageAway`."""

    def __init__(self, url: str) -> None:
        """Use `url`, such as `s3://bucket/prefix`. Nothing is read yet."""
        self._url = url

    @cached_property
    def _store(self) -> ObjectStore:
        """The client. It has threads, so a process makes its own when it first needs it."""
        return from_url(self._url, client_options=TIMEOUTS, retry_config=RETRIES)

    def get(self, key: str) -> bytes:
        """The content of a small object.

        Raises:
            FileNotFoundError: There is none.
        """
        with _plain_errors():
            return bytes(obstore.get(self._store, key).bytes())

    def get_with_version(self, key: str) -> tuple[bytes, "UpdateVersion"]:
        """The content of a small object, and what `replace` needs to replace no other.

        Raises:
            FileNotFoundError: There is none.
        """
        with _plain_errors():
            result = obstore.get(self._store, key)
            version: UpdateVersion = {}
            if result.meta["e_tag"] is not None:
                version["e_tag"] = result.meta["e_tag"]
            if result.meta["version"] is not None:  # Google Cloud Storage compares these
                version["version"] = result.meta["version"]
            return bytes(result.bytes()), version

    def has(self, key: str) -> bool:
        """Whether there is an object."""
        with _plain_errors(), suppress(FileNotFoundError):
            obstore.head(self._store, key)
            return True
        return False

    def parts(self, key: str, places: range | None = None, *, size: int = PART) -> Iterator[bytes]:
        """The bytes of an object, which nobody replaces meanwhile, or those at some places, part by part.

        Raises:
            FileNotFoundError: There is none.
        """
        if places is None:
            with _plain_errors():
                places = range(obstore.head(self._store, key)["size"])
        for start in range(places.start, places.stop, size):
            with _plain_errors():
                part = bytes(obstore.get_range(self._store, key, start=start, end=min(start + size, places.stop)))
            yield part

    def fetch(self, key: str, target: Path, staging: Path) -> None:
        """Copy an object into a file, in one step: it is written below `staging`, on the same file system.

        Raises:
            FileNotFoundError: There is none.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = staging / f"fetch-{uuid4()}"
        try:
            with temporary.open("wb") as file:
                file.writelines(self.parts(key, size=2 * PART))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, key: str, content: bytes | BinaryIO) -> None:
        """Write an object, also from an open file: all of it or nothing."""
        with _plain_errors():
            if isinstance(content, bytes):
                obstore.put(self._store, key, content)
            else:
                chunk = max(PART, os.fstat(content.fileno()).st_size // MOST_PARTS)
                obstore.put(self._store, key, _read(content, chunk), chunk_size=chunk)

    def put_new(self, key: str, content: bytes) -> bool:
        """Write a small object if there is none; false if another content is there."""
        with _plain_errors():
            try:
                obstore.put(self._store, key, content, mode="create")
            except AlreadyExistsError:
                return self._holds(key, content)
        return True

    def replace(self, key: str, content: bytes, version: "UpdateVersion | None") -> bool:
        """Replace a small object if it is the one that was read, or write it if none was; false otherwise."""
        if version is None:
            return self.put_new(key, content)
        with _plain_errors():
            try:
                obstore.put(self._store, key, content, mode=version)
            except PreconditionError:
                return self._holds(key, content)
        return True

    def _holds(self, key: str, content: bytes) -> bool:
        """Whether a refused write was made nevertheless: by its first attempt, whose answer was lost."""
        with suppress(FileNotFoundError):
            return self.get(key) == content
        return False

    def copy(self, key: str, target: str) -> None:
        """Copy a small object, in the server.

        Raises:
            FileNotFoundError: There is none.
        """
        with _plain_errors():
            obstore.copy(self._store, key, target)

    def objects(self, below: str) -> dict[str, Object]:
        """Every object whose key begins with `below` and a slash, by the rest of the key."""
        with _plain_errors(), _existing_bucket():
            return {
                _checked(meta["path"], below): Object(meta["size"], meta["last_modified"], meta["e_tag"])
                for batch in obstore.list(self._store, f"{below}/")
                for meta in batch
            }

    def folders(self, below: str) -> list[str]:
        """The names that follow `below/` in longer keys."""
        with _plain_errors(), _existing_bucket():
            prefixes = obstore.list_with_delimiter(self._store, f"{below}/")["common_prefixes"]
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes]

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are missing are fine."""
        for key in keys:
            with _plain_errors(), suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def delete_below(self, below: str) -> None:
        """Remove every object whose key begins with `below` and a slash."""
        self.delete([f"{below}/{rest}" for rest in self.objects(below)])

    def address(self, key: str, seconds: int) -> str:
        """A URL at which whoever has it can read an object for so long."""
        store = self._store
        assert isinstance(store, (S3Store, GCSStore, AzureStore))
        with _plain_errors():
            return obstore.sign(store, "GET", key, timedelta(seconds=seconds))


def _read(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The rest of a file, part by part."""
    while part := file.read(size):
        step()
        yield part


def _checked(key: str, below: str) -> str:
    """The rest of a listed key, which must be a plain path: it becomes one below a folder.

    Raises:
        OSError: It is none. Whoever computes may write keys.
    """
    rest = key.removeprefix(f"{below}/")
    if any(name in ("", ".", "..") for name in rest.split("/")) or "\0" in rest:
        raise OSError(errno.EINVAL, "a key of the object storage is no plain path")
    return rest


@contextmanager
def _existing_bucket() -> Iterator[None]:
    """A listing without a bucket is no empty one.

    Raises:
        StorageAway: There is no such bucket.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageAway("There is no such bucket.") from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Count a call as a step, and raise what obstore raises as our errors: its message may have a key or an address.

    Raises:
        FileNotFoundError: There is no such object.
        StorageAway: Anything else.
    """
    step()
    try:
        yield
    except BaseError as error:
        raise StorageAway(f"The object storage does not answer, or refuses ({type(error).__name__}).") from error
