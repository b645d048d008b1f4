"""The client: INTERFACES over HTTP, typed as plain mappings. The CLI stands on it."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from service.domain.errors import ClientError

TERMINAL = frozenset({"completed", "not_memorised", "cancelled", "rejected", "failed"})
CHUNK = 1 << 20
POLL_SECONDS = 0.5
RETRIES, MAX_WAIT = 4, 30.0


class Client:
    """A connection to one service."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30) -> None:
        """Talk to the service at `url`."""
        transport = httpx.HTTPTransport(retries=2)
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)

    @classmethod
    def from_environment(cls) -> "Client":
        """From UNLEARND_URL and UNLEARND_API_KEY.

        Raises:
            ClientError: One of them is not set.
        """
        try:
            return cls(os.environ["UNLEARND_URL"], os.environ["UNLEARND_API_KEY"])
        except KeyError as error:
            raise ClientError(f"{error.args[0]} is not set") from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """One call; returns the parsed answer.

        Raises:
            ClientError: The service refused, naming the field, or cannot be reached.
        """
        for attempt in range(RETRIES):
            wait = 2**attempt * 0.25
            try:
                answer = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                if attempt + 1 == RETRIES:
                    raise ClientError(f"the service cannot be reached: {error}") from error
            else:
                if answer.status_code not in (429, 503) or attempt + 1 == RETRIES:
                    return _parsed(answer)
                asked = answer.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if asked.isdecimal() else wait
            time.sleep(min(wait, MAX_WAIT))  # back-off: the condition lies with the other side
        raise AssertionError("unreachable")

    def add_model(self, name: str, path: str, retain: str, heldout: str, policy: dict[str, Any]) -> Any:
        """Register a model folder on the server, or a hub id."""
        body = {"name": name, "path": path, "retain_path": retain, "heldout_path": heldout, "policy": policy}
        return self.call("POST", "/v1/models", json=body, timeout=600)

    def add_corpus(self, model: str, name: str, path: str, **fields: Any) -> Any:
        """Register training data on the server, to look people up in; it is indexed in the background."""
        return self.call("POST", f"/v1/models/{model}/corpora", json={"name": name, "path": path, **fields})

    def corpus(self, model: str, name: str) -> Any:
        """One corpus, and how far it is indexed."""
        return self.call("GET", f"/v1/models/{model}/corpora/{name}")

    def submit(self, model: str, texts: list[str], **fields: Any) -> Any:
        """Submit a deletion request; safe to repeat on a lost connection."""
        body = {"model": model, "records": [{"text": text} for text in texts], **fields}
        return self.call("POST", "/v1/deletion-requests", json=body, headers={"Idempotency-Key": uuid4().hex})

    def request(self, request_id: str) -> Any:
        """One request."""
        return self.call("GET", f"/v1/deletion-requests/{request_id}")

    def job(self, job_id: str) -> Any:
        """One job."""
        return self.call("GET", f"/v1/jobs/{job_id}")

    def retry_job(self, job_id: str) -> Any:
        """Put the failed requests of a job back in line; returns them."""
        return self.call("POST", f"/v1/jobs/{job_id}/retry")

    def retry_request(self, request_id: str) -> Any:
        """Put a failed request back in line."""
        return self.call("POST", f"/v1/deletion-requests/{request_id}/retry")

    def events(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of a job's events, live, until it ends; a cut connection is taken up again."""
        last, kind = "0", "done"
        while True:
            headers = {"Last-Event-ID": last}
            try:
                with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=60) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        _parsed(answer)
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = value
                        elif name == "event":
                            kind = value
                        elif name == "data":
                            yield kind, json.loads(value)
                return
            except httpx.TransportError:
                time.sleep(POLL_SECONDS)

    def until_batched(self, request_id: str) -> Any:
        """The request once it belongs to a job or has ended."""
        return self._poll(request_id, lambda found: found["job_id"] or found["status"] in TERMINAL)

    def wait(self, request_id: str, seconds: float = float("inf")) -> Any:
        """The request once it is in a terminal state, or as it is after `seconds`."""
        return self._poll(request_id, lambda found: found["status"] in TERMINAL, seconds)

    def _poll(self, request_id: str, enough: Callable[[Any], Any], seconds: float = float("inf")) -> Any:
        until = time.monotonic() + seconds
        while not enough(found := self.request(request_id)) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return found

    def version(self, model: str, version: str = "latest") -> Any:
        """One version with its files."""
        return self.call("GET", f"/v1/models/{model}/versions/{version}")

    def export_log(self) -> Iterator[str]:
        """The lines of an export: the newest checkpoint, then the entries that it covers."""
        answer = self._http.get("/v1/log/checkpoint")
        if not answer.is_success:
            _parsed(answer)
        note, start = answer.text, 0
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
        if target.is_file() and _sha256(target) == entry["sha256"]:
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
                        _parsed(answer)
                    with partial.open("ab" if answer.status_code == 206 else "wb") as out:
                        for chunk in answer.iter_bytes(CHUNK):
                            out.write(chunk)
                            progress(entry["path"], out.tell(), entry["size"])
            except httpx.TransportError:
                time.sleep(POLL_SECONDS)
        if entry["size"] == 0:
            partial.touch()
        if not partial.exists() or _sha256(partial) != entry["sha256"]:
            partial.unlink(missing_ok=True)
            return False
        partial.replace(target)
        return True


def _parsed(answer: httpx.Response) -> Any:
    """The JSON of a good answer.

    Raises:
        ClientError: With the problem's detail and fields.
    """
    if answer.is_success:
        return answer.json() if answer.content else None
    try:
        found = answer.json()
        fields = "; ".join(f"{e['field']}: {e['message']}" for e in found.get("errors") or [])
        raise ClientError(fields or f"{found['title']}: {found['detail']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"the service answered {answer.status_code}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
