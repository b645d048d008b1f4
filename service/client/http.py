"""The clients of the HTTP API. Answers are plain dicts and lists. The command line uses `Client`.

with Client(url, key) as client:
    request = client.submit("assistant", ["Maria Example lives at 12 Sample Street."])
    print(client.wait(request["id"])["status"])

async with AsyncClient(url, key) as client:
    request = await client.submit("assistant", subject={"identities": [{"type": "email", "value": address}]})
    print((await client.wait(request["id"]))["status"])
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol, Self, TypeVar, Unpack

import httpx

from service.client.answers import EventData, MatchAnswer, RequestAnswer, VersionAnswer
from service.client.download import DownloadProgress, download_file
from service.client.operations import (
    MAX_ATTEMPTS,
    TERMINAL,
    CallOptions,
    EventParser,
    Operations,
    Parameter,
    connection_options,
    environment,
    parse_answer,
    retry_delay,
)
from service.domain.errors import ClientError
from service.domain.json_types import Json

POLL_SECONDS = 0.5
EVENT_TIMEOUT = 60  # seconds without a line before an event stream counts as cut
PAGE_SIZE = 200
MAX_RECONNECTS = 120  # attempts in a row to reopen an event stream
Value = TypeVar("Value")


class ListOperation(Protocol):
    """An operation that returns one page of a list, as `client.requests`."""

    def __call__(self, **parameters: Parameter) -> Json:
        """Return the page that `cursor` and `limit` name."""
        ...


class Client(Operations[Json]):
    """A connection to one service."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30) -> None:
        """Connect to the service at `url`."""
        self._http = httpx.Client(**connection_options(url, api_key, timeout))

    @classmethod
    def from_environment(cls) -> Self:
        """Connect with UNLEARND_URL and UNLEARND_API_KEY.

        Raises:
            ClientError: One of them is not set, or is malformed.
        """
        return cls(*environment())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(self, method: str, path: str, *, text: bool = False, **options: Unpack[CallOptions]) -> Json:
        """Send one call and return the parsed answer, or its text. Repeats it as `retry_delay` allows.

        Raises:
            ClientError: The service refused (the message names the field), or cannot be reached.
        """
        for attempt in range(MAX_ATTEMPTS):
            answer, lost = None, None
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                lost = error
            delay = retry_delay(attempt, answer, lost, method, options)
            if delay is None:
                return _final_answer(answer, lost, text=text)
            time.sleep(delay)
        raise AssertionError("unreachable")

    def events(self, job_id: str) -> Iterator[tuple[str, EventData]]:
        """Yield (kind, data) of a job's events live until the job ends. Reopens a cut connection."""
        parser, path, failures = EventParser(), f"/v1/jobs/{job_id}/events", 0
        while True:
            try:
                with self._http.stream("GET", path, headers=parser.headers, timeout=EVENT_TIMEOUT) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        parse_answer(answer)
                    for line in answer.iter_lines():
                        failures = 0
                        yield from ((kind, json.loads(data)) for kind, data in parser.feed(line))
                return
            except httpx.TransportError as error:
                failures += 1
                if failures > MAX_RECONNECTS:
                    raise ClientError(f"the connection to the service is lost: {error}") from error
                time.sleep(POLL_SECONDS)

    def until_batched(self, request_id: str) -> RequestAnswer:
        """Wait until the request belongs to a job, is held up, or has ended; return it."""
        request: RequestAnswer = self.poll(lambda: self.request(request_id), _is_batched_or_held)
        return request

    def wait(self, request_id: str, seconds: float = float("inf")) -> RequestAnswer:
        """Wait until the request is in a terminal state, at most `seconds`; return it."""
        request: RequestAnswer = self.poll(lambda: self.request(request_id), _has_ended, seconds)
        return request

    def poll(self, ask: Callable[[], Value], is_done: Callable[[Value], bool], seconds: float = float("inf")) -> Value:
        """Call `ask` until `is_done` accepts its answer, at most `seconds`; return the last answer."""
        deadline = time.monotonic() + seconds
        while not is_done(answer := ask()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return answer

    def all_matches(self, request_id: str) -> list[MatchAnswer]:
        """Return everything that a request which waits for approval would unlearn."""
        page: list[MatchAnswer] = self.matches(request_id)
        matches = list(page)
        while len(page) >= PAGE_SIZE and page[-1]["match"] is not None:
            page = self.matches(request_id, after=page[-1]["match"])
            matches += page
        return matches

    def list_all(
        self, operation: ListOperation, *, most: int | None = None, **filters: Parameter
    ) -> Iterator[dict[str, object]]:
        """Yield the items of a list, all or the first `most`, as in `client.list_all(client.requests, model="m")`."""
        cursor, left = None, sys.maxsize if most is None else most
        while left > 0:
            page = operation(limit=min(PAGE_SIZE, left), **filters, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            left -= len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def export_log(self) -> Iterator[str]:
        """Yield the lines of an export: the newest checkpoint, those that witnesses have cosigned, then the entries."""
        witnessed = [one["checkpoint"] for one in self.call("GET", "/v1/log/witnessed")["items"]]
        note, start = self.call("GET", "/v1/log/checkpoint", text=True), 0
        size = int(note.split("\n")[1])
        yield json.dumps({"checkpoint": note, "witnessed": witnessed})
        while start < size:
            limit = min(PAGE_SIZE, size - start)
            page = self.call("GET", "/v1/log/entries", params={"start": start, "limit": limit})
            yield from (json.dumps(item) for item in page["items"])
            start += len(page["items"])

    def download(
        self,
        model: str,
        version: str,
        folder: Path,
        progress: DownloadProgress = lambda *_: None,
        *,
        delta: bool = False,
    ) -> VersionAnswer:
        """Fetch a release folder. Keeps files that have the right digest, and resumes partial ones.

        Without `delta` the folder `delta/` is left out, and with it the folder `model/`.

        Raises:
            ClientError: A file's digest is not the one that the version lists, even after a second try.
        """
        release: VersionAnswer = self.version(model, version)
        skipped = "model/" if delta else "delta/"
        if delta and not any(file["path"].startswith("delta/") for file in release["files"]):
            raise ClientError(f"version {release['version']} has no delta: download the whole release")
        for file in release["files"]:
            if file["path"].startswith(skipped):
                continue
            target = folder / file["path"]
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ClientError(f"{file['path']} would lie outside the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            url = f"/v1/models/{model}/versions/{release['version']}/files/{file['path']}"
            if not any(download_file(self._http, url, target, file, progress) for _ in range(2)):
                raise ClientError(f"{file['path']} does not arrive with its published digest")
        return release


class AsyncClient(Operations[Awaitable[Json]]):
    """The same for `asyncio`: the caller awaits every operation."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30) -> None:
        """Connect to the service at `url`."""
        self._connection = url, api_key, timeout
        self._http = httpx.AsyncClient(**connection_options(url, api_key, timeout))

    @classmethod
    def from_environment(cls) -> Self:
        """Connect with UNLEARND_URL and UNLEARND_API_KEY, as `Client.from_environment` does."""
        return cls(*environment())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def call(self, method: str, path: str, **options: Unpack[CallOptions]) -> Json:
        """Send one call and return the parsed answer. Repeats it as `retry_delay` allows.

        Raises:
            ClientError: The service refused (the message names the field), or cannot be reached.
        """
        for attempt in range(MAX_ATTEMPTS):
            answer, lost = None, None
            try:
                answer = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                lost = error
            delay = retry_delay(attempt, answer, lost, method, options)
            if delay is None:
                return _final_answer(answer, lost)
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def events(self, job_id: str) -> AsyncIterator[tuple[str, EventData]]:
        """Yield (kind, data) of a job's events live until the job ends. Reopens a cut connection."""
        parser, path, failures = EventParser(), f"/v1/jobs/{job_id}/events", 0
        while True:
            try:
                async with self._http.stream("GET", path, headers=parser.headers, timeout=EVENT_TIMEOUT) as answer:
                    if answer.status_code != 200:
                        await answer.aread()
                        parse_answer(answer)
                    async for line in answer.aiter_lines():
                        failures = 0
                        for kind, data in parser.feed(line):
                            yield kind, json.loads(data)
                return
            except httpx.TransportError as error:
                failures += 1
                if failures > MAX_RECONNECTS:
                    raise ClientError(f"the connection to the service is lost: {error}") from error
                await asyncio.sleep(POLL_SECONDS)

    async def wait(self, request_id: str, seconds: float = float("inf")) -> RequestAnswer:
        """Wait until the request is in a terminal state, at most `seconds`; return it."""
        deadline = time.monotonic() + seconds
        request: RequestAnswer
        while not _has_ended(request := await self.request(request_id)) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return request

    async def download(self, model: str, version: str, folder: Path, *, delta: bool = False) -> VersionAnswer:
        """Fetch a release folder as `Client.download` does, in a thread."""

        def fetch() -> VersionAnswer:
            url, api_key, timeout = self._connection
            with Client(url, api_key, timeout=timeout) as client:
                return client.download(model, version, folder, delta=delta)

        return await asyncio.to_thread(fetch)


def _has_ended(request: RequestAnswer) -> bool:
    return request["status"] in TERMINAL


def _is_batched_or_held(request: RequestAnswer) -> bool:
    """Whether the request has a job, waits for an approval, cannot be resolved for a reason, or has ended."""
    held = request["waits_for"] == "approval" or (request["waits_for"] and request["reason"])
    return bool(request["job_id"] or held or _has_ended(request))


def _final_answer(answer: httpx.Response | None, error: httpx.TransportError | None, *, text: bool = False) -> Json:
    """The result of the last attempt."""
    if answer is None:
        raise ClientError(f"the service cannot be reached, or does not answer: {error}") from error
    return answer.text if text and answer.is_success else parse_answer(answer)
