"""The API's operations, one method each, for the clients to send: at once, or awaited.

An answer is the JSON that the OpenAPI document describes, as plain mappings.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypedDict, TypeVar
from uuid import uuid4

import httpx

from service.domain.errors import ClientError

TERMINAL = frozenset({"completed", "not_memorised", "cancelled", "rejected", "failed"})
RETRIES, MAX_WAIT = 4, 30.0
Answer = TypeVar("Answer")  # Any, or an awaitable of it


class Identity(TypedDict, total=False):
    """Who it is about: `type` email, phone, controller_customer_id, ...; `format` raw (default), sha1, md5, sha256."""

    type: str
    format: str
    value: str


class Subject(TypedDict, total=False):
    """A person to be looked up in a model's corpora."""

    identities: list[Identity]
    names: list[str]


class Operations(Generic[Answer]):
    """What can be asked of the service."""

    def call(self, method: str, path: str, **arguments: Any) -> Answer:
        """One call; returns the parsed answer."""
        raise NotImplementedError

    def add_model(self, name: str, path: str, retain: str, heldout: str, policy: dict[str, Any]) -> Answer:
        """Register a model folder on the server, or a hub id."""
        body = {"name": name, "path": path, "retain_path": retain, "heldout_path": heldout, "policy": policy}
        return self.call("POST", "/v1/models", json=body, timeout=600)

    def models(self, **filters: Any) -> Answer:
        """A page of the models."""
        return self.call("GET", "/v1/models", params=filters)

    def add_corpus(self, model: str, name: str, path: str, **fields: Any) -> Answer:
        """Register training data on the server, to look people up in; it is indexed in the background."""
        return self.call("POST", f"/v1/models/{model}/corpora", json={"name": name, "path": path, **fields})

    def corpora(self, model: str, **filters: Any) -> Answer:
        """A page of a model's corpora."""
        return self.call("GET", f"/v1/models/{model}/corpora", params=filters)

    def corpus(self, model: str, name: str) -> Answer:
        """One corpus, and how far it is indexed."""
        return self.call("GET", f"/v1/models/{model}/corpora/{name}")

    def remove_corpus(self, model: str, name: str) -> Answer:
        """Forget a corpus and its index."""
        return self.call("DELETE", f"/v1/models/{model}/corpora/{name}")

    def submit(self, model: str, texts: Iterable[str] = (), *, subject: Subject | None = None, **fields: Any) -> Answer:
        """Submit a deletion request of texts, of a person, or both; safe to repeat on a lost connection."""
        body = asked(model, subject, **fields) | {"records": [{"text": text} for text in texts]}
        return self.call("POST", "/v1/deletion-requests", json=body, headers={"Idempotency-Key": uuid4().hex})

    def preview(self, model: str, subject: Subject, **fields: Any) -> Answer:
        """What a request of this person would match; makes none."""
        return self.call("POST", "/v1/deletion-requests:preview", json=asked(model, subject, **fields))

    def request(self, request_id: str) -> Answer:
        """One request."""
        return self.call("GET", f"/v1/deletion-requests/{request_id}")

    def requests(self, **filters: Any) -> Answer:
        """A page of the requests, newest first: status, model, due_before, cursor, limit."""
        return self.call("GET", "/v1/deletion-requests", params=filters)

    def cancel(self, request_id: str) -> Answer:
        """Cancel a pending request."""
        return self.call("DELETE", f"/v1/deletion-requests/{request_id}")

    def extend(self, request_id: str, reason: str) -> Answer:
        """Extend an open request's deadline, once."""
        return self.call("POST", f"/v1/deletion-requests/{request_id}/extend", json={"reason": reason})

    def matches(self, request_id: str, **page: Any) -> Answer:
        """A page of what a request that waits for approval would unlearn: after, limit."""
        return self.call("GET", f"/v1/deletion-requests/{request_id}/matches", params=page)

    def approve(self, request_id: str, matches: list[int] | None = None) -> Answer:
        """Approve a request, with all or some of its matches."""
        return self.call("POST", f"/v1/deletion-requests/{request_id}/approve", json={"matches": matches})

    def reject(self, request_id: str, reason: str) -> Answer:
        """Refuse a request that waits for approval."""
        return self.call("POST", f"/v1/deletion-requests/{request_id}/reject", json={"reason": reason})

    def retry_request(self, request_id: str) -> Answer:
        """Put a failed request back in line."""
        return self.call("POST", f"/v1/deletion-requests/{request_id}/retry")

    def job(self, job_id: str) -> Answer:
        """One job."""
        return self.call("GET", f"/v1/jobs/{job_id}")

    def retry_job(self, job_id: str) -> Answer:
        """Put the failed requests of a job back in line; returns them."""
        return self.call("POST", f"/v1/jobs/{job_id}/retry")

    def version(self, model: str, version: str = "latest") -> Answer:
        """One version with its files."""
        return self.call("GET", f"/v1/models/{model}/versions/{version}")


def asked(model: str, subject: Subject | None, **fields: Any) -> dict[str, Any]:
    """A request's body without texts."""
    return {"model": model, **fields, **({"subject": subject} if subject else {})}


def pause(
    attempt: int, answer: httpx.Response | None, lost: httpx.TransportError | None, method: str, arguments: Any
) -> float | None:
    """Seconds until the next attempt; None: there is none, what came counts.

    What was refused for now, or never arrived, may be sent again. What was lost on its way may have been done: then
    only what changes nothing, or has an Idempotency-Key.
    """
    harmless = method in ("GET", "HEAD") or "Idempotency-Key" in (arguments.get("headers") or {})
    if attempt + 1 == RETRIES or (lost is not None and not (harmless or isinstance(lost, httpx.ConnectError))):
        return None
    if answer is not None and answer.status_code not in (429, 503):
        return None
    asked_for = answer.headers.get("Retry-After", "") if answer is not None else ""
    wait: float = max(0.25 * 2**attempt, float(asked_for) if asked_for.isdecimal() else 0.0)
    return min(MAX_WAIT, wait)


def parsed(answer: httpx.Response) -> Any:
    """The JSON of a good answer.

    Raises:
        ClientError: With the problem's detail and fields.
    """
    try:
        if answer.is_success:
            return answer.json() if answer.content else None
        found = answer.json()
        fields = "; ".join(f"{e['field']}: {e['message']}" for e in found.get("errors") or [])
        raise ClientError(fields or f"{found['title']}: {found['detail']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"the service answered {answer.status_code}") from error


def environment() -> tuple[str, str]:
    """URL and key.

    Raises:
        ClientError: One of them is not set.
    """
    try:
        return os.environ["UNLEARND_URL"], os.environ["UNLEARND_API_KEY"]
    except KeyError as error:
        raise ClientError(f"{error.args[0]} is not set") from error


def connection(url: str, api_key: str, timeout: float) -> dict[str, Any]:
    """What an HTTP client is made with; a key that was read from a file may end in a line's end.

    Raises:
        ClientError: The key or the URL is none.
    """
    key = api_key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("the API key is not one")
    try:
        return {"base_url": httpx.URL(url), "headers": {"Authorization": f"Bearer {key}"}, "timeout": timeout}
    except httpx.InvalidURL as error:
        raise ClientError("the service's URL is not one") from error


class EventLines:
    """Puts the lines of a stream of Server-Sent Events together; knows from where to go on."""

    def __init__(self) -> None:
        """At the beginning."""
        self.last, self._kind = "0", "done"

    @property
    def headers(self) -> dict[str, str]:
        """What asks for the events after the last one."""
        return {"Last-Event-ID": self.last}

    def take(self, line: str) -> Iterator[tuple[str, str]]:
        """(kind, data) if the line completes an event."""
        name, _, value = line.partition(": ")
        if name == "id":
            self.last = value
        elif name == "event":
            self._kind = value
        elif name == "data":
            yield self._kind, value
