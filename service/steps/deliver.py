"""Callbacks: tell the submitter's URL that a request ended, at least once, with back-off."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpcore

from service.app import Services
from service.db import outbox, requests
from service.db.tables import DeletionRequest
from service.privacy.envelope import Envelope
from service.webhooks import post, secret_of

log = logging.getLogger(__name__)
MAX_ATTEMPTS, IN_ONE_CALL = 10, 20
UNREACHED = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)
AT_ONCE = threading.BoundedSemaphore(2)


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
    message = {
        "type": "deletion_request.ended", "id": str(request.id), "status": status, "verdict": request.verdict,
        "version": request.version, "reason": request.reason, "sent_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    settings = services.settings
    try:
        status_code = post(
            url, message, message_id=entry_id, secret=secret_of(services.wrapper, request.api_key_id),
            seconds=settings.callback_seconds, allow_private=settings.callback_allow_private,
        )  # fmt: skip
        ok = 200 <= status_code < 300
        log.info("callback request=%s http_status=%s", request.id, status_code)
    except (*UNREACHED, OSError, ValueError) as error:  # a host that is no host: ValueError
        log.warning("callback failed request=%s error=%s", request.id, type(error).__name__)
        ok = False
    return ok
