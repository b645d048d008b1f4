"""Callbacks: tell the submitter's URL that a request ended, at least once, with back-off."""

import ipaddress
import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from service.app import Services
from service.db import outbox, requests
from service.db.tables import DeletionRequest
from service.privacy.envelope import Envelope

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 10


class RefusedTarget(ValueError):
    """The callback would go to an address that is not the outside world's."""


def deliver(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Make every callback that is due, or as many as `go_on` lets us; returns how many were delivered."""
    delivered = 0
    held = timedelta(seconds=2 * services.settings.callback_seconds)  # an attempt's time-out, and as much again
    while go_on():
        with services.db.transaction("deliver") as session:
            due = outbox.take_due(session, held)
        if due is None:
            break
        entry_id, request_id, status = due
        with services.db.transaction() as session:
            request = requests.by_id(session, request_id)
        assert request is not None
        ok = _post(services, request, entry_id, status)
        delivered += ok
        with services.db.transaction("delivered") as session:
            outbox.record(session, entry_id, delivered=ok, max_attempts=MAX_ATTEMPTS)
    return delivered


def _post(services: Services, request: DeletionRequest, entry_id: UUID, status: str) -> bool:
    """One attempt; the URL is opened in memory and never logged."""
    if request.wrapped_key is None or request.callback_url is None:
        return True
    envelope = Envelope.unwrap(request.id, request.wrapped_key, services.wrapper)
    url = envelope.open("callback_url", request.callback_url).decode()
    body = {
        "type": "deletion_request.ended", "id": str(request.id), "status": status, "verdict": request.verdict,
        "version": request.version, "reason": request.reason, "sent_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    try:
        check_target(url, allow_private=services.settings.callback_allow_private)
        with httpx.Client(
            timeout=services.settings.callback_seconds, follow_redirects=False, trust_env=False
        ) as client:
            answer = client.post(url, json=body, headers={"webhook-id": str(entry_id)})
        ok = answer.is_success
        log.info("callback request=%s http_status=%s", request.id, answer.status_code)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # a host that is no host: ValueError
        log.warning("callback failed request=%s error=%s", request.id, type(error).__name__)
        ok = False
    return ok


def check_target(url: str, *, allow_private: bool) -> None:
    """Refuse hosts that resolve to loopback, private, link-local or reserved addresses.

    Raises:
        RefusedTarget: Some address of the host is not global.
        OSError: The host does not resolve.
    """
    parts = urlsplit(url)
    if allow_private:
        return
    for *_, address in socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM):
        if not ipaddress.ip_address(address[0]).is_global:
            raise RefusedTarget("not a global address")
