"""OpenDSR 2.0 and OpenGDPR 1.0, the processor's side: signatures and status bodies.

Every answer and every callback carries the processor's domain and, in base64, an RSA signature (PKCS #1 v1.5, SHA-256)
over the exact bytes of the body (`evidence.opendsr_key`).
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.db.tables import DeletionRequest
from service.domain.json_types import JsonObject
from service.domain.notifications import opendsr_status
from service.domain.states import TERMINAL_REQUESTS
from service.evidence.opendsr_key import OpenDsrKey

LATE_EXTENSION = timedelta(days=1)  # a request that failed or is late is expected this long from now


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the two: the version in the body, and the name in the headers."""

    api_version: str
    header: str

    def headers(self, signer: OpenDsrKey, body: bytes) -> dict[str, str]:
        """The headers of a signed body."""
        prefix = f"X-{self.header}"
        return {f"{prefix}-Processor-Domain": signer.domain, f"{prefix}-Signature": signer.sign(body)}


DIALECTS = {"opendsr": Dialect("2.0", "OpenDSR"), "opengdpr": Dialect("1.0", "OpenGDPR")}


def expected_completion(request: DeletionRequest) -> datetime:
    """When a request is expected to be done. For a request that failed or is late, the time moves on with the clock."""
    if request.finished_at is not None and opendsr_status(request.status) != "in_progress":
        return request.finished_at
    if request.status in TERMINAL_REQUESTS or request.due_at < datetime.now(UTC):
        return max(request.due_at, datetime.now(UTC) + LATE_EXTENSION)
    return request.due_at


def status_body(request: DeletionRequest, status: str, results_url: str | None, *, exact: bool = False) -> JsonObject:
    """The fields that a status answer and a callback share; `status` is one of OpenDSR's.

    The number of results is left out if a search has found some, unless `exact`: a controller learns only whether it
    is 0, as any submitter.
    """
    body: JsonObject = {
        "controller_id": str(request.api_key_id),
        "expected_completion_time": timestamp(expected_completion(request)),
        "subject_request_id": str(request.subject_request_id),
        "request_status": status,
    }
    if status == "completed":
        if exact or not request.results_count:
            body["results_count"] = request.records_count
        if results_url:
            body["results_url"] = results_url
    return body


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(body: JsonObject) -> bytes:
    """The bytes of a body, which are sent and signed."""
    return json.dumps(body).encode()
