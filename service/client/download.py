"""Download of one file of a release folder: in parts, resumed where it stopped, and checked against its digest."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import httpx

from service.client.answers import VersionFile
from service.client.operations import MAX_ATTEMPTS, parse_answer
from service.domain.errors import ClientError
from service.files import file_sha256

CHUNK_BYTES = 1 << 20
PART_BYTES, PARTS_AT_ONCE = 1 << 26, 4  # one connection alone rarely fills a long line
RETRY_SECONDS = 0.5
DownloadProgress: TypeAlias = Callable[[str, int, int], None]  # path, bytes so far, bytes in all
REBUILDING = "rebuilding"  # the problem of an old version whose weights are not there yet
REBUILDING_SECONDS, REBUILT_SECONDS = 5, 6 * 3600  # between two questions for it, and for how long to ask


def download_file(http: httpx.Client, url: str, target: Path, file: VersionFile, progress: DownloadProgress) -> bool:
    """Fetch one file, resuming a partial one; false if the digest of the result is wrong.

    The parts lie beside the file while they arrive, and are then joined to the first.

    Raises:
        ClientError: The service refuses it, or it breaks off again and again.
    """
    if target.is_file() and file_sha256(target) == file["sha256"]:
        progress(file["path"], file["size"], file["size"])
        return True
    whole = _Download(http, url, target, file, progress).run()
    if file_sha256(whole) != file["sha256"]:
        whole.unlink()
        return False
    whole.replace(target)
    return True


class _Download:
    """The parts of one file."""

    def __init__(
        self, http: httpx.Client, url: str, target: Path, file: VersionFile, progress: DownloadProgress
    ) -> None:
        self._http, self._url, self._file, self._progress = http, url, file, progress
        self._first = target.with_name(f"{target.name}.part")
        self._lock, self._stopped, self._done = threading.Lock(), threading.Event(), 0

    def run(self) -> Path:
        """Fetch the parts that are missing; return the file of all of them.

        Raises:
            ClientError: A part breaks off each time.
        """
        self._first.touch()
        joined = max(1, self._size(0) // PART_BYTES)
        if self._size(0) > joined * PART_BYTES:  # another part was being joined
            with self._first.open("r+b") as first:
                first.truncate(joined * PART_BYTES)
        starts = [0, *range(joined * PART_BYTES, self._file["size"], PART_BYTES)]
        self._done = sum(self._size(start) for start in starts)
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            try:
                list(pool.map(self._fetch_part, starts))
            except BaseException:
                self._stopped.set()
                raise
        with self._first.open("ab") as first:
            for start in starts[1:]:
                with self._part(start).open("rb") as part:
                    shutil.copyfileobj(part, first, CHUNK_BYTES)
                first.flush()
                self._part(start).unlink()
        for start in range(PART_BYTES, joined * PART_BYTES, PART_BYTES):  # joined by a process that was killed
            self._part(start).unlink(missing_ok=True)
        return self._first

    def _part(self, start: int) -> Path:
        """The file of the part that begins there."""
        return self._first.with_name(f"{self._first.name}{start}") if start else self._first

    def _size(self, start: int) -> int:
        """The bytes of a part that have arrived."""
        part = self._part(start)
        return part.stat().st_size if part.exists() else 0

    def _fetch_part(self, start: int) -> None:
        """Fetch one part, a few times if it breaks off.

        Raises:
            ClientError: It breaks off each time.
        """
        end = min(start + PART_BYTES, self._file["size"])
        self._part(start).touch()
        for _ in range(MAX_ATTEMPTS):
            if start + self._size(start) >= end or self._stopped.is_set():
                return
            try:
                until = time.monotonic() + REBUILT_SECONDS
                while self._fetch(start, end, last=time.monotonic() > until):
                    with self._lock:
                        self._progress(f"{self._file['path']}, which the service rebuilds", 0, self._file["size"])
                    self._stopped.wait(REBUILDING_SECONDS)
            except httpx.TransportError:
                self._stopped.wait(RETRY_SECONDS)
        if start + self._size(start) < end:
            raise ClientError(f"{self._file['path']} breaks off again and again; what arrived is kept for next time")

    def _fetch(self, start: int, end: int, *, last: bool) -> bool:
        """Append the bytes of a part that are missing.

        Returns:
            Whether to ask again later, because the service is rebuilding the file; never if this is the `last` time.
        """
        begin, whole = start + self._size(start), (0, self._file["size"])
        headers = {"Range": f"bytes={begin}-{end - 1}"} if (begin, end) != whole else {}
        with self._http.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code not in (200, 206):
                answer.read()
                if not last and answer.status_code == 503 and f'"{REBUILDING}"'.encode() in answer.content:
                    return not self._stopped.is_set()
                parse_answer(answer)
            arrived = begin if answer.status_code == 206 else 0  # a server may send the whole file
            with self._part(start).open("ab") as part:
                for chunk in _slice(answer.iter_bytes(CHUNK_BYTES), begin - arrived, end - arrived):
                    part.write(chunk)
                    with self._lock:
                        self._done += len(chunk)
                        self._progress(self._file["path"], self._done, self._file["size"])
                    if self._stopped.is_set():
                        break
        return False


def _slice(chunks: Iterator[bytes], begin: int, end: int) -> Iterator[bytes]:
    """The bytes `begin` to `end` of a stream; the rest is not read."""
    place = 0
    for chunk in chunks:
        yield chunk[max(0, begin - place) : max(0, end - place)]
        place += len(chunk)
        if place >= end:
            return
