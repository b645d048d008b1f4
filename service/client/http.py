"""The clients: INTERFACES over HTTP, typed, with plain mappings as answers. The CLI stands on `Client`.

with Client(url, key) as client:
    request = client.submit("assistant", ["Maria Example lives at 12 Sample Street."])
    print(client.wait(request["id"])["status"])

async with AsyncClient(url, key) as client:
    request = await client.submit("assistant", subject={"identities": [{"type": "email", "value": address}]})
    print((await client.wait(request["id"]))["status"])
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from service.client.operations import RETRIES, TERMINAL, EventLines, Operations, connection, environment, parsed, pause
from service.domain.errors import ClientError
from service.files import file_sha256

CHUNK = 1 << 20
POLL_SECONDS = 0.5
MATCHES = 200  # of a page
LOST = 120  # attempts in a row to take up a stream again


class Client(Operations[Any]):
    """A connection to one service."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30) -> None:
        """Talk to the service at `url`."""
        self._http = httpx.Client(**connection(url, api_key, timeout))

    @classmethod
    def from_environment(cls) -> Self:
        """From UNLEARND_URL and UNLEARND_API_KEY.

        Raises:
            ClientError: One of them is not set, or no such thing.
        """
        return cls(*environment())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(self, method: str, path: str, *, text: bool = False, **arguments: Any) -> Any:
        """One call; returns the parsed answer, or its text. What may be is sent again if it is busy or away.

        Raises:
            ClientError: The service refused, naming the field, or cannot be reached.
        """
        for attempt in range(RETRIES):
            answer, lost = None, None
            try:
                answer = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                lost = error
            wait = pause(attempt, answer, lost, method, arguments)
            if wait is None:
                return _outcome(answer, lost, text=text)
            time.sleep(wait)  # back-off: the condition lies with the other side
        raise AssertionError("unreachable")

    def events(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of a job's events, live, until it ends; a cut connection is taken up again."""
        lines, path, lost = EventLines(), f"/v1/jobs/{job_id}/events", 0
        while True:
            try:
                with self._http.stream("GET", path, headers=lines.headers, timeout=60) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        parsed(answer)
                    for line in answer.iter_lines():
                        lost = 0
                        yield from ((kind, json.loads(data)) for kind, data in lines.take(line))
                return
            except httpx.TransportError as error:
                lost += 1
                if lost > LOST:
                    raise ClientError(f"the service does not come back: {error}") from error
                time.sleep(POLL_SECONDS)

    def until_batched(self, request_id: str) -> Any:
        """The request once it belongs to a job, waits for somebody, or has ended."""

        def enough(found: Any) -> bool:
            stuck = found["waits_for"] == "approval" or (found["waits_for"] and found["reason"])
            return found["job_id"] or stuck or found["status"] in TERMINAL

        return self.poll(lambda: self.request(request_id), enough)

    def wait(self, request_id: str, seconds: float = float("inf")) -> Any:
        """The request once it is in a terminal state, or as it is after `seconds`."""
        return self.poll(lambda: self.request(request_id), _has_ended, seconds)

    def poll(self, ask: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = float("inf")) -> Any:
        """What `ask` answers once that is enough, or as it is after `seconds`."""
        until = time.monotonic() + seconds
        while not enough(found := ask()) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return found

    def all_matches(self, request_id: str) -> list[Any]:
        """Everything that a request which waits for approval would unlearn."""
        found = page = self.matches(request_id)
        while len(page) >= MATCHES and page[-1]["match"] is not None:
            page = self.matches(request_id, after=page[-1]["match"])
            found += page
        return list(found)

    def every(self, listing: Callable[..., Any], **filters: Any) -> Iterator[Any]:
        """The items of all pages of a listing of ours, as `client.every(client.requests, model="m")`."""
        cursor = None
        while True:
            page = listing(limit=MATCHES, **filters, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def export_log(self) -> Iterator[str]:
        """The lines of an export: the newest checkpoint, then the entries that it covers."""
        note, start = self.call("GET", "/v1/log/checkpoint", text=True), 0
        size = int(note.split("\n")[1])
        yield json.dumps({"checkpoint": note})
        while start < size:
            page = self.call("GET", "/v1/log/entries", params={"start": start, "limit": min(200, size - start)})
            yield from (json.dumps(item) for item in page["items"])
            start += len(page["items"])

    def download(
        self, model: str, version: str, folder: Path, progress: Callable[[str, int, int], None] = lambda *_: None
    ) -> Any:
        """Fetch a release folder; what is there already and right is kept, a partial file goes on.

        Raises:
            ClientError: A file's digest is not what the version lists, even after a second try.
        """
        found = self.version(model, version)
        for entry in found["files"]:
            target = folder / entry["path"]
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ClientError(f"{entry['path']} would lie outside the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            url = f"/v1/models/{model}/versions/{found['version']}/files/{entry['path']}"
            if not any(self._fetch(url, target, entry, progress) for _ in range(2)):
                raise ClientError(f"{entry['path']} does not arrive as it was published")
        return found

    def _fetch(self, url: str, target: Path, entry: Any, progress: Callable[[str, int, int], None]) -> bool:
        """Bring one file to its digest, going on from a partial one; false if the result is wrong."""
        if target.is_file() and file_sha256(target) == entry["sha256"]:
            progress(entry["path"], entry["size"], entry["size"])
            return True
        partial = target.with_name(target.name + ".part")
        for _ in range(RETRIES):
            have = partial.stat().st_size if partial.exists() else 0
            if have >= entry["size"]:
                break
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{entry["sha256"]}"'} if have else {}
            try:
                with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.status_code not in (200, 206):
                        answer.read()
                        parsed(answer)
                    with partial.open("ab" if answer.status_code == 206 else "wb") as out:
                        for chunk in answer.iter_bytes(CHUNK):
                            out.write(chunk)
                            progress(entry["path"], out.tell(), entry["size"])
            except httpx.TransportError:
                time.sleep(POLL_SECONDS)
        if entry["size"] == 0:
            partial.touch()
        if not partial.exists() or file_sha256(partial) != entry["sha256"]:
            partial.unlink(missing_ok=True)
            return False
        partial.replace(target)
        return True


class AsyncClient(Operations[Awaitable[Any]]):
    """The same for `asyncio`: every operation is awaited."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30) -> None:
        """Talk to the service at `url`."""
        self._where = url, api_key, timeout
        self._http = httpx.AsyncClient(**connection(url, api_key, timeout))

    @classmethod
    def from_environment(cls) -> Self:
        """From UNLEARND_URL and UNLEARND_API_KEY.

        Raises:
            ClientError: One of them is not set, or no such thing.
        """
        return cls(*environment())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def call(self, method: str, path: str, **arguments: Any) -> Any:
        """One call; returns the parsed answer. What may be is sent again if it is busy or away.

        Raises:
            ClientError: The service refused, naming the field, or cannot be reached.
        """
        for attempt in range(RETRIES):
            answer, lost = None, None
            try:
                answer = await self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                lost = error
            wait = pause(attempt, answer, lost, method, arguments)
            if wait is None:
                return _outcome(answer, lost)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def events(self, job_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of a job's events, live, until it ends; a cut connection is taken up again."""
        lines, path, lost = EventLines(), f"/v1/jobs/{job_id}/events", 0
        while True:
            try:
                async with self._http.stream("GET", path, headers=lines.headers, timeout=60) as answer:
                    if answer.status_code != 200:
                        await answer.aread()
                        parsed(answer)
                    async for line in answer.aiter_lines():
                        lost = 0
                        for kind, data in lines.take(line):
                            yield kind, json.loads(data)
                return
            except httpx.TransportError as error:
                lost += 1
                if lost > LOST:
                    raise ClientError(f"the service does not come back: {error}") from error
                await asyncio.sleep(POLL_SECONDS)

    async def wait(self, request_id: str, seconds: float = float("inf")) -> Any:
        """The request once it is in a terminal state, or as it is after `seconds`."""
        until = time.monotonic() + seconds
        while not _has_ended(found := await self.request(request_id)) and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
        return found

    async def download(self, model: str, version: str, folder: Path) -> Any:
        """Fetch a release folder, as `Client` does, in a thread."""

        def fetch() -> Any:
            url, api_key, timeout = self._where
            with Client(url, api_key, timeout=timeout) as client:
                return client.download(model, version, folder)

        return await asyncio.to_thread(fetch)


def _has_ended(found: Any) -> bool:
    return found["status"] in TERMINAL


def _outcome(answer: httpx.Response | None, lost: httpx.TransportError | None, *, text: bool = False) -> Any:
    """What the last attempt came to."""
    if answer is None:
        raise ClientError(f"the service cannot be reached, or does not answer: {lost}") from lost
    return answer.text if text and answer.is_success else parsed(answer)
