"""The dialects: one function for each platform, which turns a change of a request's status into an HTTP call.

Fides has no status for a failure. The service does not make one up: it sends nothing, Fides goes on waiting, and the
operator is alerted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

from service.bootstrap import Services
from service.callbacks import datagrail_signature, opendsr
from service.callbacks.webhooks import OutgoingCall, signature_headers, webhook_secret
from service.db.tables import DeletionRequest
from service.domain.json_types import JsonObject
from service.domain.notifications import opendsr_status
from service.domain.states import TERMINAL_REQUESTS, RequestStatus
from service.domain.submission import CallbackTarget
from service.privacy.envelope import Wrapper

FIDES_REPLY_PATH = "/api/v1/request-task/callback"
SUCCESSFUL = (RequestStatus.COMPLETED, RequestStatus.NOT_MEMORISED)


@dataclass(frozen=True, slots=True)
class Notification:
    """One message to send. `status` is the status that the request had reached when the message was queued."""

    services: Services
    request: DeletionRequest
    message_id: UUID
    status: str
    target: CallbackTarget

    @property
    def ended(self) -> JsonObject:
        """The fields of a generic message about a request that has ended."""
        request = self.request
        return {
            "id": str(request.id),
            "status": self.status,
            "verdict": request.verdict,
            "version": request.version,
            "reason": request.reason,
        }


def _standard(notification: Notification) -> OutgoingCall:
    """To a callback URL without a platform, signed after Standard Webhooks with the API key's secret."""
    event = "ended" if notification.status in TERMINAL_REQUESTS else "reopened"
    message = {"type": f"deletion_request.{event}", **notification.ended, "sent_at": datetime.now(UTC).isoformat()}
    secret = webhook_secret(notification.services.wrapper, notification.request.api_key_id)
    return _signed(notification, secret, message)


def alert(notification: Notification) -> OutgoingCall:
    """To the operator's alert webhook. `status` is failed, rejected, due_soon, overdue or awaiting_approval."""
    request = notification.request
    message = {
        "type": f"deletion_request.{notification.status}",
        "id": str(request.id),
        "model": request.model.name,
        "reason": request.reason,
        "due_at": request.due_at.isoformat(),
        "sent_at": datetime.now(UTC).isoformat(),
    }
    secret = notification.services.settings.alert_secret.get_secret_value()
    return _signed(notification, secret, message, trusted=True)


def _signed(notification: Notification, secret: str, message: JsonObject, *, trusted: bool = False) -> OutgoingCall:
    """A message as a call that is signed after Standard Webhooks."""
    body = json.dumps(message).encode()
    headers = signature_headers(secret, notification.message_id, datetime.now(UTC), body)
    return OutgoingCall("POST", notification.target.url, headers, body, trusted)


def _opendsr(notification: Notification) -> OutgoingCall:
    """To an OpenDSR or OpenGDPR controller, signed with the processor's RSA key."""
    request, services, url = notification.request, notification.services, notification.target.url
    assert request.dialect is not None
    dialect = opendsr.DIALECTS[request.dialect]
    status = opendsr.status_body(request, opendsr_status(notification.status), results_url(services, request))
    body = opendsr.dumps({**status, "api_version": dialect.api_version, "status_callback_url": url})
    headers = {"content-type": "application/json", **dialect.headers(services.opendsr, body)}
    return OutgoingCall("POST", url, headers, body)


def results_url(services: Services, request: DeletionRequest) -> str | None:
    """The URL of the certificate about a request, for callers that may read it; None before there is one."""
    if request.version is None or not services.settings.public_url:
        return None
    return f"{services.settings.public_url}/v1/models/{request.model.name}/versions/{request.version}/certificate"


def fides_url(services: Services) -> str:
    """The one URL on which Fides is called back. It is the operator's, so Fides' token goes to no other host."""
    if not services.settings.fides_url:
        raise ValueError("UNLEARND_FIDES_URL is not set")
    return services.settings.fides_url.rstrip("/") + FIDES_REPLY_PATH


def transcend_url(services: Services) -> str:
    """The one URL on which Transcend is told. It is the operator's, so Transcend's API key goes to no other host."""
    return f"{services.settings.transcend_url.rstrip('/')}/v1/data-silo"


def _fides(notification: Notification) -> OutgoingCall | None:
    """`POST {fides}/api/v1/request-task/callback` with the request's token; None for a failure, which has no status."""
    if notification.status not in SUCCESSFUL:
        return None
    body = json.dumps({"rows_masked": notification.request.records_count}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {notification.target.token}"}
    return OutgoingCall("POST", fides_url(notification.services), headers, body, trusted=True)


def _transcend(notification: Notification) -> OutgoingCall:
    """`PUT {sombra}/v1/data-silo` with the request's nonce."""
    settings = notification.services.settings
    if notification.status in SUCCESSFUL:
        status = "READY" if notification.request.records_count else "SKIPPED"
    elif RequestStatus(notification.status) is RequestStatus.CANCELLED:
        status = "SKIPPED_DUE_TO_EXCEPTION"
    else:
        status = "ACTION_REQUIRED"
    headers = {
        "content-type": "application/json",
        "x-transcend-nonce": notification.target.token or "",
        "authorization": f"Bearer {settings.transcend_api_key.get_secret_value()}",
    }
    if settings.transcend_internal_key:
        headers["x-sombra-authorization"] = f"Bearer {settings.transcend_internal_key.get_secret_value()}"
    body = json.dumps({"status": status, "message": f"unlearnd: {notification.status}"}).encode()
    return OutgoingCall("PUT", transcend_url(notification.services), headers, body, trusted=True)


def _datagrail(notification: Notification) -> OutgoingCall | None:
    """To the callback URL of a DataGrail webhook, signed as DataGrail signs; None while a request is open again."""
    if notification.status not in TERMINAL_REQUESTS:
        return None
    status = "completed" if notification.status in SUCCESSFUL else "failed"
    message = {**notification.ended, "webhook_request_id": notification.target.token, "status": status}
    body = json.dumps(message).encode()
    secret = notification.services.settings.datagrail_secrets[notification.request.model.name].get_secret_value()
    headers = datagrail_signature.signature_headers(secret, datetime.now(UTC), body)
    return OutgoingCall("POST", notification.target.url, headers, body)


def callback_lane(wrapper: Wrapper, api_key_id: UUID, target: CallbackTarget) -> int:
    """The lane of this API key's callbacks to the target's host: a keyed hash of 63 bits, never 0."""
    host = (urlsplit(target.url).hostname or "").rstrip(".")
    digest = wrapper.keyed_hash("webhook", b"lane" + api_key_id.bytes + host.encode())
    return int.from_bytes(digest[:8], "big") >> 1 or 1


CALLBACK_BUILDERS: dict[str | None, Callable[[Notification], OutgoingCall | None]] = {
    None: _standard,
    "opendsr": _opendsr,
    "opengdpr": _opendsr,
    "fides": _fides,
    "transcend": _transcend,
    "datagrail": _datagrail,
}
