"""The operations of the HTTP API, one method each. `Client` sends them at once, `AsyncClient` returns awaitables.

An answer is the JSON that the OpenAPI document describes, as plain dicts and lists.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeAlias, TypedDict, TypeVar, Unpack
from uuid import uuid4

import httpx

from service.domain.errors import ClientError
from service.domain.json_types import Json
from service.domain.subject import Subject

TERMINAL = frozenset({"completed", "not_memorised", "cancelled", "rejected", "failed"})
MAX_ATTEMPTS, MAX_DELAY = 4, 30.0  # of one call; seconds between two attempts
NDJSON, REQUESTS = "application/x-ndjson", "/v1/deletion-requests"
Answer = TypeVar("Answer")  # Json, or an awaitable of it
Parameter: TypeAlias = str | int | float | bool | None  # the value of a query parameter


class CallOptions(TypedDict, total=False):
    """Body, query, headers and timeout (seconds) of one call, as httpx takes them."""

    json: Mapping[str, object]
    content: bytes
    params: Mapping[str, Parameter]
    headers: dict[str, str]
    timeout: float


class ConnectionOptions(TypedDict):
    """What an httpx client is made with."""

    base_url: httpx.URL
    headers: dict[str, str]
    timeout: float


class Operations(Generic[Answer]):
    """Everything that a client can ask of the service."""

    def call(self, method: str, path: str, **options: Unpack[CallOptions]) -> Answer:
        """Send one call and return the parsed answer."""
        raise NotImplementedError

    def add_model(
        self,
        name: str,
        path: str,
        retain: str,
        heldout: str,
        policy: Mapping[str, object],
        base: str | None = None,
        neighbours: Mapping[str, str] | None = None,
    ) -> Answer:
        """Register a model, perhaps with the `base` that it was fine-tuned from, and files that no version may lose."""
        body = {"name": name, "path": path, "retain_path": retain, "heldout_path": heldout, "policy": policy}
        more = {"base_path": base, "neighbour_paths": neighbours}
        body |= {field: value for field, value in more.items() if value}
        return self.call("POST", "/v1/models", json=body, timeout=600)

    def models(self, **filters: Parameter) -> Answer:
        """Return a page of the models."""
        return self.call("GET", "/v1/models", params=filters)

    def add_corpus(self, model: str, name: str, path: str, **fields: object) -> Answer:
        """Register training data on the server, in which people are looked up. The service indexes it in background."""
        return self.call("POST", f"/v1/models/{model}/corpora", json={"name": name, "path": path, **fields})

    def corpora(self, model: str, **filters: Parameter) -> Answer:
        """Return a page of a model's corpora."""
        return self.call("GET", f"/v1/models/{model}/corpora", params=filters)

    def corpus(self, model: str, name: str) -> Answer:
        """Return one corpus, and how much of it is indexed."""
        return self.call("GET", f"/v1/models/{model}/corpora/{name}")

    def remove_corpus(self, model: str, name: str) -> Answer:
        """Remove a corpus and its index. Its files stay."""
        return self.call("DELETE", f"/v1/models/{model}/corpora/{name}")

    def submit(
        self, model: str, texts: Iterable[str] = (), *, subject: Subject | None = None, **fields: object
    ) -> Answer:
        """Submit a deletion request for texts, for a person, or for both. A lost call is repeated safely."""
        body = request_body(model, subject, fields) | {"records": [{"text": text} for text in texts]}
        return self.call("POST", REQUESTS, json=body, headers={"Idempotency-Key": uuid4().hex})

    def submit_many(self, requests: Iterable[Mapping[str, object]]) -> Answer:
        """Submit up to 1000 requests, each with an `idempotency_key` or not; return a result for each, in order."""
        lines = (json.dumps({"idempotency_key": uuid4().hex, **request}) + "\n" for request in requests)
        content, headers = "".join(lines).encode(), {"Content-Type": NDJSON}
        return self.call("POST", f"{REQUESTS}:bulk", content=content, headers=headers, timeout=300)

    def preview(self, model: str, subject: Subject, **fields: object) -> Answer:
        """Return what a request for this person would match, without making one."""
        return self.call("POST", "/v1/deletion-requests:preview", json=request_body(model, subject, fields))

    def request(self, request_id: str) -> Answer:
        """Return one request."""
        return self.call("GET", f"{REQUESTS}/{request_id}")

    def requests(self, **filters: Parameter) -> Answer:
        """Return a page of the requests, newest first. Filters: status, model, due_before, reference."""
        return self.call("GET", REQUESTS, params=filters)

    def cancel(self, request_id: str, reason: str | None = None) -> Answer:
        """Cancel a pending request."""
        return self.call("DELETE", f"{REQUESTS}/{request_id}", params={"reason": reason} if reason else {})

    def extend(self, request_id: str, reason: str) -> Answer:
        """Extend an open request's deadline, once."""
        return self.call("POST", f"{REQUESTS}/{request_id}/extend", json={"reason": reason})

    def matches(self, request_id: str, **page: Parameter) -> Answer:
        """Return a page of what a request that waits for approval would unlearn. Parameters: after, limit."""
        return self.call("GET", f"{REQUESTS}/{request_id}/matches", params=page)

    def approve(self, request_id: str, matches: list[int] | None = None, reason: str | None = None) -> Answer:
        """Approve a request with all of its matches, or with some."""
        return self.call("POST", f"{REQUESTS}/{request_id}/approve", json={"matches": matches, "reason": reason})

    def reject(self, request_id: str, reason: str) -> Answer:
        """Refuse a request that waits for approval."""
        return self.call("POST", f"{REQUESTS}/{request_id}/reject", json={"reason": reason})

    def retry_request(self, request_id: str, reason: str | None = None) -> Answer:
        """Make a failed request pending again."""
        return self.call("POST", f"{REQUESTS}/{request_id}/retry", params={"reason": reason} if reason else {})

    def purge_request(self, request_id: str) -> Answer:
        """Purge the texts of a request that has ended, before its time."""
        return self.call("POST", f"{REQUESTS}/{request_id}/purge")

    def resolve_request(self, request_id: str, reason: str) -> Answer:
        """Record that a failed request was dealt with in another way."""
        return self.call("POST", f"{REQUESTS}/{request_id}/resolve", json={"reason": reason})

    def job(self, job_id: str) -> Answer:
        """Return one job."""
        return self.call("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Parameter) -> Answer:
        """Return a page of the jobs, newest first. Filters: model, stage."""
        return self.call("GET", "/v1/jobs", params=filters)

    def cancel_job(self, job_id: str) -> Answer:
        """Stop a job that computes. Its requests fail, and can be retried."""
        return self.call("POST", f"/v1/jobs/{job_id}/cancel")

    def retry_job(self, job_id: str) -> Answer:
        """Make the failed requests of a job pending again, and return them."""
        return self.call("POST", f"/v1/jobs/{job_id}/retry")

    def versions(self, model: str, **page: Parameter) -> Answer:
        """Return a page of a model's versions, newest first."""
        return self.call("GET", f"/v1/models/{model}/versions", params=page)

    def withdraw(self, model: str, version: str, reason: str, *, reopen: bool = False) -> Answer:
        """Withdraw a version: its files are handed out no more; `reopen` opens the requests it fulfilled again."""
        body = {"reason": reason, "reopen": reopen}
        return self.call("POST", f"/v1/models/{model}/versions/{version}/withdraw", json=body)

    def api_keys(self) -> Answer:
        """Return all API keys, without their secrets."""
        return self.call("GET", "/v1/api-keys")

    def model(self, name: str) -> Answer:
        """Return one model with its policy."""
        return self.call("GET", f"/v1/models/{name}")

    def set_policy(self, model: str, policy: Mapping[str, object], policy_version: int) -> Answer:
        """Replace a model's policy, if `policy_version` is still the one in force."""
        body = {"policy": policy, "policy_version": policy_version}
        return self.call("PUT", f"/v1/models/{model}/policy", json=body)

    def policies(self, model: str, **page: Parameter) -> Answer:
        """Return a page of all policies of a model, newest first."""
        return self.call("GET", f"/v1/models/{model}/policies", params=page)

    def rechecks(self, model: str, **page: Parameter) -> Answer:
        """Return a page of a model's rechecks, newest first."""
        return self.call("GET", f"/v1/models/{model}/rechecks", params=page)

    def version(self, model: str, version: str = "latest") -> Answer:
        """Return one version and the list of its files."""
        return self.call("GET", f"/v1/models/{model}/versions/{version}")


def request_body(model: str, subject: Subject | None, fields: Mapping[str, object]) -> dict[str, object]:
    """The body of a deletion request, without its texts."""
    return {"model": model, **fields, **({"subject": subject} if subject else {})}


def retry_delay(
    attempt: int, answer: httpx.Response | None, error: httpx.TransportError | None, method: str, options: CallOptions
) -> float | None:
    """Seconds to wait before the next attempt; None if this attempt's result is final.

    The client repeats a call that the service refused for now (429, 503) and a call that never arrived. A call whose
    answer was lost may have been carried out. The client repeats it only if it changes nothing or has an
    Idempotency-Key, or one on each line.
    """
    headers = options.get("headers") or {}
    repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in headers or headers.get("Content-Type") == NDJSON
    if attempt + 1 == MAX_ATTEMPTS or (error and not (repeatable or isinstance(error, httpx.ConnectError))):
        return None
    if answer is not None and answer.status_code not in (429, 503):
        return None
    retry_after = answer.headers.get("Retry-After", "") if answer is not None else ""
    delay: float = max(0.25 * 2**attempt, float(retry_after) if retry_after.isdecimal() else 0.0)
    return min(MAX_DELAY, delay)


def parse_answer(answer: httpx.Response) -> Json:
    """Return the JSON of a successful answer.

    Raises:
        ClientError: The service refused. The message has the problem's detail, or the wrong fields.
    """
    try:
        if answer.is_success and answer.headers.get("Content-Type", "").startswith(NDJSON):
            return [json.loads(line) for line in answer.content.splitlines()]
        if answer.is_success:
            return answer.json() if answer.content else None
        raise ClientError(problem_message(answer.json()))
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"the service answered {answer.status_code}") from error


def problem_message(problem: Json) -> str:
    """The wrong fields of a problem document, or its detail."""
    fields = "; ".join(f"{error['field']}: {error['message']}" for error in problem.get("errors") or [])
    return fields or f"{problem['title']}: {problem['detail']}"


def environment() -> tuple[str, str]:
    """Return UNLEARND_URL and UNLEARND_API_KEY.

    Raises:
        ClientError: One of them is not set.
    """
    if "UNLEARND_URL" not in os.environ:
        raise ClientError("UNLEARND_URL is not set")
    return os.environ["UNLEARND_URL"], api_key()


def api_key() -> str:
    """Return UNLEARND_API_KEY.

    Raises:
        ClientError: It is not set.
    """
    if "UNLEARND_API_KEY" not in os.environ:
        raise ClientError("UNLEARND_API_KEY is not set")
    return os.environ["UNLEARND_API_KEY"]


def connection_options(url: str, api_key: str, timeout: float) -> ConnectionOptions:
    """The options of an httpx client. Strips the key: one that was read from a file may end with a newline.

    Raises:
        ClientError: The key or the URL is malformed.
    """
    key = api_key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("the API key is malformed")
    try:
        return {"base_url": httpx.URL(url), "headers": {"Authorization": f"Bearer {key}"}, "timeout": timeout}
    except httpx.InvalidURL as error:
        raise ClientError("the service's URL is malformed") from error


class EventParser:
    """Parses a stream of Server-Sent Events line by line, and remembers the last event's id to resume after it."""

    def __init__(self) -> None:
        """Start before the first event."""
        self.last_event_id, self._kind = "0", "done"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that ask for the events after the last one."""
        return {"Last-Event-ID": self.last_event_id}

    def feed(self, line: str) -> Iterator[tuple[str, str]]:
        """Yield (kind, data) if the line completes an event."""
        name, _, value = line.partition(": ")
        if name == "id":
            self.last_event_id = value
        elif name == "event":
            self._kind = value
        elif name == "data":
            yield self._kind, value
