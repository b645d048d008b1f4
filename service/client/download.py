"""Download of one file of a release folder: in parts, resumed, and checked against its digest."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeAlias

import httpx

from service.client.answers import VersionFile
from service.client.operations import MAX_ATTEMPTS, MAX_DELAY, parse_answer
from service.domain.errors import ClientError
from service.files import file_sha256

PART_BYTES, PARTS_AT_ONCE, MOST_PARTS = 1 << 26, 4, 10_000
RETRY_SECONDS = 0.5
FOR_NOW = {429, 502, 503, 504}  # statuses after which the same question may be answered
DownloadProgress: TypeAlias = Callable[[str, int, int], None]  # path, bytes so far, bytes in all
REBUILDING = "rebuilding"  # the problem of an old version whose weights are not there yet
REBUILDING_SECONDS, REBUILT_SECONDS = 5.0, 6 * 3600  # between two questions for it, and for how long to ask


def download_file(http: httpx.Client, url: str, target: Path, file: VersionFile, progress: DownloadProgress) -> bool:
    """Fetch one file, resuming a partial one; false if the digest of the result is wrong.

    Until it is whole it is `NAME.part`, and `NAME.parts` lists what has arrived.

    Raises:
        ClientError: The service refuses it, or it breaks off again and again.
    """
    download = _Download(http, url, target, file, progress)
    right = target.is_file() and file_sha256(target) == file["sha256"]
    if right:
        progress(file["path"], file["size"], file["size"])
    else:
        download.run()
        right = file_sha256(download.partial) == file["sha256"]
        if right:
            download.partial.replace(target)
    download.partial.unlink(missing_ok=True)
    download.arrived.unlink(missing_ok=True)
    return right


class _Download:
    """The parts of one file.

    Attributes:
        partial: The file, with holes.
        arrived: The sha256 of the whole file, and a line for each part that is there: its first byte and its end.
    """

    def __init__(
        self, http: httpx.Client, url: str, target: Path, file: VersionFile, progress: DownloadProgress
    ) -> None:
        self._http, self._url, self._file, self._progress = http, url, file, progress
        self.partial, self.arrived = (target.with_name(target.name + end) for end in (".part", ".parts"))
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._alone: range | None = None  # the part that gets the whole file, if the server knows no ranges
        self._places: dict[int, int] = {}  # start of a part -> its next byte
        self._done = 0

    def run(self) -> None:
        """Fetch the parts that are missing.

        Raises:
            ClientError: The service refuses one, or it breaks off each time.
        """
        size, known = self._file["size"], self._read_arrived()
        each = max(PART_BYTES, size // MOST_PARTS)
        parts = [range(start, min(start + each, size)) for start in range(0, size, each)]
        missing = [part for part in parts if f"{part.start}-{part.stop}" not in known]
        self._done = size - sum(map(len, missing))
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            try:
                for done in as_completed([pool.submit(self._fetch_part, part) for part in missing]):
                    done.result()
            except BaseException:
                self._stopped.set()
                raise

    def _read_arrived(self) -> set[str]:
        """The parts that are there. What is there of another file is thrown away."""
        is_there = self.arrived.exists() and self.partial.exists()
        lines = self.arrived.read_text(errors="replace").splitlines() if is_there else []
        if lines[:1] == [self._file["sha256"]]:
            return set(lines[1:])
        self.arrived.unlink(missing_ok=True)
        self.partial.write_bytes(b"")
        self.arrived.write_text(f"{self._file['sha256']}\n")
        return set()

    def _fetch_part(self, part: range) -> None:
        """Fetch one part, a few times if it breaks off, and note that it is there.

        Raises:
            ClientError: The service refuses it, or it breaks off each time.
        """
        self._places[part.start] = furthest = part.start
        attempts, until = 0, time.monotonic() + REBUILT_SECONDS
        while self._places[part.start] < self._end(part):
            if self._stopped.is_set() or self._alone not in (None, part):
                return
            if attempts == MAX_ATTEMPTS:
                raise ClientError(f"{self._file['path']} breaks off again and again; whole parts of it are kept")
            try:
                delay, counts = self._ask(part, last=time.monotonic() > until)
            except httpx.TransportError:
                delay, counts = RETRY_SECONDS, True
            attempts += counts
            if self._places[part.start] > furthest:
                furthest, attempts = self._places[part.start], 0
            self._stopped.wait(delay)
        with self._lock, self.arrived.open("a") as arrived:
            arrived.write(f"{part.start}-{part.stop}\n")

    def _end(self, part: range) -> int:
        """Where a part ends: with the file, if it gets all of it."""
        return self._file["size"] if self._alone == part else part.stop

    def _ask(self, part: range, *, last: bool) -> tuple[float, bool]:
        """Ask for what is missing of a part.

        Returns:
            (seconds until it may be asked for again, whether this counts as an attempt). It does not if the service is
            rebuilding the file, unless this is the `last` time.
        """
        place = self._places[part.start]
        headers = {"Range": f"bytes={place}-{self._end(part) - 1}", "Accept-Encoding": "identity"}
        with self._http.stream("GET", self._url, headers=headers, follow_redirects=True) as answer:
            if answer.status_code == 206:
                begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
                if not begins or int(begins[1]) != place:
                    raise ClientError(f"{self._file['path']}: the service sends another part than the one asked for")
                self._write(answer, part)
            elif answer.status_code == 200:
                if self._is_alone(part):
                    self._write(answer, part)
            else:
                answer.read()
                rebuilding = answer.status_code == 503 and f'"{REBUILDING}"'.encode() in answer.content
                if rebuilding and not last:
                    with self._lock:
                        self._progress(f"{self._file['path']}, which the service rebuilds", 0, self._file["size"])
                    return REBUILDING_SECONDS, False
                if rebuilding or answer.status_code not in FOR_NOW:
                    parse_answer(answer)
                after = answer.headers.get("Retry-After", "")
                return min(MAX_DELAY, float(after)) if after.isdecimal() else RETRY_SECONDS, True
        return 0.0, True

    def _is_alone(self, part: range) -> bool:
        """Whether this part gets the whole file; the first one that is asked for, then the others are not."""
        with self._lock:
            self._alone = self._alone or part
            if self._alone != part:
                return False
            self._places[part.start] = self._done = 0
            return True

    def _write(self, answer: httpx.Response, part: range) -> None:
        """Write the bytes of an answer from a part's next byte on."""
        with self.partial.open("r+b") as file:
            file.seek(self._places[part.start])
            for chunk in answer.iter_bytes():
                wanted = chunk[: self._end(part) - self._places[part.start]]
                file.write(wanted)
                with self._lock:
                    if self._alone not in (None, part):
                        return
                    self._places[part.start] += len(wanted)
                    self._done += len(wanted)
                    self._progress(self._file["path"], self._done, self._file["size"])
                if self._places[part.start] >= self._end(part) or self._stopped.is_set():
                    return
