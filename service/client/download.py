"""Download of one file of a release folder: resumed where it stopped, and checked against its digest."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import httpx

from service.client.answers import VersionFile
from service.client.operations import MAX_ATTEMPTS, parse_answer
from service.files import file_sha256

CHUNK_BYTES = 1 << 20
RETRY_SECONDS = 0.5
DownloadProgress: TypeAlias = Callable[[str, int, int], None]  # path, bytes so far, bytes in all
REBUILDING = "rebuilding"  # the problem of an old version whose weights are not there yet
REBUILDING_SECONDS, REBUILT_SECONDS = 5, 6 * 3600  # between two questions for it, and for how long to ask


def download_file(http: httpx.Client, url: str, target: Path, file: VersionFile, progress: DownloadProgress) -> bool:
    """Fetch one file, resuming a partial one; false if the digest of the result is wrong."""
    if target.is_file() and file_sha256(target) == file["sha256"]:
        progress(file["path"], file["size"], file["size"])
        return True
    partial = target.with_name(target.name + ".part")
    for _ in range(MAX_ATTEMPTS):
        offset = partial.stat().st_size if partial.exists() else 0
        if offset >= file["size"]:
            break
        try:
            until = time.monotonic() + REBUILT_SECONDS
            while _fetch(http, url, partial, offset, file, progress, last=time.monotonic() > until):
                progress(f"{file['path']}, which the service rebuilds", 0, file["size"])
                time.sleep(REBUILDING_SECONDS)
        except httpx.TransportError:
            time.sleep(RETRY_SECONDS)
    if file["size"] == 0:
        partial.touch()
    if not partial.exists() or file_sha256(partial) != file["sha256"]:
        partial.unlink(missing_ok=True)
        return False
    partial.replace(target)
    return True


def _fetch(
    http: httpx.Client,
    url: str,
    partial: Path,
    offset: int,
    file: VersionFile,
    progress: DownloadProgress,
    *,
    last: bool,
) -> bool:
    """Append the bytes from `offset` on, or write the whole file if the server does not serve the range.

    Returns:
        Whether to ask again later, because the service is rebuilding the file; never if this is the `last` time.
    """
    headers = {"Range": f"bytes={offset}-", "If-Range": f'"{file["sha256"]}"'} if offset else {}
    with http.stream("GET", url, headers=headers) as answer:
        if answer.status_code not in (200, 206):
            answer.read()
            if not last and answer.status_code == 503 and f'"{REBUILDING}"'.encode() in answer.content:
                return True
            parse_answer(answer)
        with partial.open("ab" if answer.status_code == 206 else "wb") as out:
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                out.write(chunk)
                progress(file["path"], out.tell(), file["size"])
    return False
