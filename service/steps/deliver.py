"""Callbacks: tell the submitter's URL that a request ended, at least once, with back-off."""

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from service.app import Services
from service.db import outbox, requests
from service.db.tables import DeletionRequest
from service.privacy.envelope import Envelope

log = logging.getLogger(__name__)
MAX_ATTEMPTS, IN_ONE_CALL = 10, 20
AT_ONCE = threading.BoundedSemaphore(2)


class RefusedTarget(ValueError):
    """The callback would go to an address that is not the outside world's."""


def deliver(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Make some of the callbacks that are due, as long as `go_on` lets us; returns how many were delivered.

    A receiver that does not answer costs a time-out. So a process makes two at a time and no more, and a call makes
    twenty: certifying and publishing never wait for somebody else's server.
    """
    if not AT_ONCE.acquire(blocking=False):
        return 0
    try:
        return _deliver_some(services, go_on)
    finally:
        AT_ONCE.release()


def _deliver_some(services: Services, go_on: Callable[[], bool]) -> int:
    delivered = made = 0
    held = timedelta(seconds=2 * services.settings.callback_seconds)  # an attempt's time-out, and as much again
    while go_on() and made < IN_ONE_CALL:
        with services.db.transaction("deliver") as session:
            due = outbox.take_due(session, held)
        if due is None:
            break
        entry_id, request_id, status = due
        made += 1
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
        status_code = asyncio.run(_status(url, body, entry_id, services.settings.callback_seconds))
        ok = 200 <= status_code < 300
        log.info("callback request=%s http_status=%s", request.id, status_code)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # a host that is no host: ValueError
        log.warning("callback failed request=%s error=%s", request.id, type(error).__name__)
        ok = False
    return ok


async def _status(url: str, body: dict[str, Any], entry_id: UUID, seconds: float) -> int:
    """The receiver's HTTP status, within so many seconds in all; what else it says is not read.

    Raises:
        TimeoutError: It took longer, however busily.
        httpx.HTTPError: It cannot be reached.
    """
    headers = {"webhook-id": str(entry_id)}
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(timeout=seconds, follow_redirects=False, trust_env=False) as client,
        client.stream("POST", url, json=body, headers=headers) as answer,
    ):
        return answer.status_code


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
