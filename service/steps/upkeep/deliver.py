"""deliver: send notifications to submitters and alerts to the operator, at least once, with back-off."""

import threading
from collections.abc import Callable
from datetime import timedelta

import httpcore

from service.bootstrap import Services
from service.callbacks.dialects import CALLBACK_BUILDERS, Notification, alert
from service.callbacks.webhooks import OutgoingCall, send
from service.db import outbox, requests
from service.db.tables import DeletionRequest
from service.domain.submission import CallbackTarget
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.privacy.records import request_data_key

logger = get_logger(__name__)
MAX_ATTEMPTS = 26  # three days
MAX_SENT = 20  # in one call
UNREACHED = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)
SLOTS = threading.BoundedSemaphore(2)


def deliver_callbacks(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Send callbacks that are due, while `go_on()` is true; returns how many were delivered.

    A receiver that does not answer costs a time-out. So a process sends at most two callbacks at a time, and a call
    sends at most twenty: certifying and publishing never wait for somebody else's server.
    """
    if not SLOTS.acquire(blocking=False):
        return 0
    try:
        return _deliver_due(services, go_on)
    finally:
        SLOTS.release()


def _deliver_due(services: Services, go_on: Callable[[], bool]) -> int:
    """Send entries of the outbox one by one; returns how many were delivered."""
    delivered = sent = 0
    held = timedelta(seconds=2 * services.settings.callback_seconds)  # twice an attempt's time-out
    while go_on() and sent < MAX_SENT:
        with services.db.transaction("deliver") as session:
            due = outbox.claim_due(session, held)
        if due is None:
            break
        sent += 1
        with services.db.transaction() as session:
            request = requests.by_id(session, due.request_id)
            superseded = outbox.is_superseded(session, due)
        assert request is not None
        with span("deliver", request.traceparent, request=str(request.id), status=due.status):
            ok = superseded or _attempt(services, request, due)
        delivered += ok
        with services.db.transaction("delivered") as session:
            given_up = outbox.store_attempt(session, due.id, delivered=ok, max_attempts=MAX_ATTEMPTS)
            if given_up and due.target != outbox.ALERT:
                outbox.enqueue_alert(session, due.request_id, "callback_given_up")
    return delivered


def _attempt(services: Services, request: DeletionRequest, due: outbox.DueEntry) -> bool:
    """Send one entry; true if it was delivered or has no target. The URL is unsealed in memory and never logged."""
    settings = services.settings
    try:
        call = _outgoing_call(services, request, due)
        if call is None:
            return True
        http_status = send(
            call,
            seconds=settings.callback_seconds,
            allow_private=settings.callback_allow_private,
            allow=settings.callback_allow,
        )
        ok = 200 <= http_status < 300
        logger.info("callback", request=request.id, http_status=http_status)
    except (*UNREACHED, OSError, ValueError) as error:  # ValueError: the URL's host is not a host name
        logger.warning("callback failed", request=request.id, error=type(error).__name__)
        ok = False
    except Exception:  # a bug, or a damaged column: it counts as an attempt, or it would block all others for ever
        logger.exception("callback failed", request=request.id)
        ok = False
    return ok


def _outgoing_call(services: Services, request: DeletionRequest, due: outbox.DueEntry) -> OutgoingCall | None:
    """The HTTP call of an entry; None if there is nobody to notify: no alert URL is set, or the request was purged."""
    if due.target == outbox.ALERT:
        target = CallbackTarget(services.settings.alert_url)
        notification = Notification(services, request, due.id, due.status, target)
        return alert(notification) if services.settings.alert_url else None
    if request.wrapped_key is None or request.callback_url is None:
        return None
    data_key = request_data_key(services.wrapper, request)
    target = CallbackTarget.loads(data_key.open("callback_url", request.callback_url).decode())[due.target]
    return CALLBACK_BUILDERS[request.dialect](Notification(services, request, due.id, due.status, target))
