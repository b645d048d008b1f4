"""What is told to whom when a request has come further: one function a dialect, from a request to an HTTP call.

Where a platform has no word for a failure, none is made up: it is not called, and goes on waiting, while the operator
is alerted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.bootstrap import Services
from service.callbacks import datagrail_signature, opendsr
from service.callbacks.webhooks import OutgoingCall, signature_headers, webhook_secret
from service.db.tables import DeletionRequest
from service.domain.notifications import dsr_word
from service.domain.states import RequestStatus

DONE = (RequestStatus.COMPLETED, RequestStatus.NOT_MEMORISED)


@dataclass(frozen=True, slots=True)
class CallbackTarget:
    """Whom to call: stored sealed, as JSON; a plain URL is one without a token."""

    url: str
    token: str | None = None

    @classmethod
    def loads(cls, sealed: str) -> list["CallbackTarget"]:
        """The targets of a request."""
        return [cls(**t) for t in json.loads(sealed)] if sealed.startswith("[") else [cls(sealed)]


@dataclass(frozen=True, slots=True)
class Notification:
    """What there is to tell: `status` is what was reached when it was written down."""

    services: Services
    request: DeletionRequest
    message_id: UUID
    status: str
    target: CallbackTarget

    @property
    def ended(self) -> dict[str, Any]:
        """What a generic message says."""
        r = self.request
        return {"id": str(r.id), "status": self.status, "verdict": r.verdict, "version": r.version, "reason": r.reason}


def _standard(news: Notification) -> OutgoingCall:
    message = {"type": "deletion_request.ended", **news.ended, "sent_at": datetime.now(UTC).isoformat()}
    return _signed(news, webhook_secret(news.services.wrapper, news.request.api_key_id), message)


def alert(news: Notification) -> OutgoingCall:
    """For the operator's alert webhook; `status` is failed, rejected, due_soon, overdue or awaiting_approval."""
    r = news.request
    message = {
        "type": f"deletion_request.{news.status}", "id": str(r.id), "model": r.model.name, "reason": r.reason,
        "due_at": r.due_at.isoformat(), "sent_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    secret = news.services.settings.alert_secret.get_secret_value()
    return _signed(news, secret, message, trusted=True)


def _signed(news: Notification, secret: str, message: dict[str, Any], *, trusted: bool = False) -> OutgoingCall:
    body = json.dumps(message).encode()
    headers = signature_headers(secret, news.message_id, datetime.now(UTC), body)
    return OutgoingCall("POST", news.target.url, headers, body, trusted)


def _opendsr(news: Notification) -> OutgoingCall:
    assert news.request.dialect is not None
    names, signer = opendsr.DIALECTS[news.request.dialect], news.services.opendsr
    found = opendsr.status_body(news.request, dsr_word(news.status), results_url(news.services, news.request))
    body = opendsr.dumps({**found, "api_version": names.api_version, "status_callback_url": news.target.url})
    return OutgoingCall(
        "POST", news.target.url, {"content-type": "application/json", **names.headers(signer, body)}, body
    )


def results_url(services: Services, request: DeletionRequest) -> str | None:
    """Where the record of a request is, for who may read it."""
    if request.version is None or not services.settings.public_url:
        return None
    return f"{services.settings.public_url}/v1/models/{request.model.name}/versions/{request.version}/certificate"


def _fides(news: Notification) -> OutgoingCall | None:
    """`POST {fides}/api/v1/request-task/callback` with the token of the request; there is no word for a failure."""
    if news.status not in DONE:
        return None
    body = json.dumps({"rows_masked": news.request.records_count}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {news.target.token}"}
    return OutgoingCall("POST", news.target.url, headers, body, trusted=True)


def _transcend(news: Notification) -> OutgoingCall:
    """`PUT {sombra}/v1/data-silo` with the nonce of the request."""
    settings, r = news.services.settings, news.request
    status = {RequestStatus.CANCELLED: "SKIPPED_DUE_TO_EXCEPTION"}.get(RequestStatus(news.status), "ACTION_REQUIRED")
    if news.status in DONE:
        status = "READY" if r.records_count else "SKIPPED"
    headers = {
        "content-type": "application/json", "x-transcend-nonce": news.target.token or "",
        "authorization": f"Bearer {settings.transcend_api_key.get_secret_value()}",
    }  # fmt: skip
    if settings.transcend_internal_key:
        headers["x-sombra-authorization"] = f"Bearer {settings.transcend_internal_key.get_secret_value()}"
    body = json.dumps({"status": status, "message": f"unlearnd: {news.status}"}).encode()
    return OutgoingCall("PUT", news.target.url, headers, body, trusted=True)


def _datagrail(news: Notification) -> OutgoingCall:
    """To the callback URL of the webhook, signed as DataGrail signs."""
    message = {**news.ended, "webhook_request_id": news.target.token, "status": _outcome(news.status)}
    body = json.dumps(message).encode()
    secret = news.services.settings.datagrail_secret.get_secret_value()
    return OutgoingCall(
        "POST", news.target.url, datagrail_signature.signature_headers(secret, datetime.now(UTC), body), body
    )


def _outcome(status: str) -> str:
    return "completed" if status in DONE else "failed"


DIALECTS: dict[str | None, Callable[[Notification], OutgoingCall | None]] = {
    None: _standard, "opendsr": _opendsr, "opengdpr": _opendsr, "fides": _fides, "transcend": _transcend,
    "datagrail": _datagrail,
}  # fmt: skip
