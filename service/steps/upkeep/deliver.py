"""Callbacks: tell the submitter's URL that a request ended, at least once, with back-off."""

import threading
from collections.abc import Callable
from datetime import timedelta

import httpcore

from service.bootstrap import Services
from service.callbacks.dialects import DIALECTS, CallbackTarget, Notification, alert
from service.callbacks.webhooks import OutgoingCall, send
from service.db import outbox, requests
from service.db.tables import DeletionRequest
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.privacy.envelope import DataKey

logger = get_logger(__name__)
MAX_ATTEMPTS, IN_ONE_CALL = 26, 20  # three days
UNREACHED = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)
AT_ONCE = threading.BoundedSemaphore(2)


def deliver_callbacks(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
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
            due = outbox.claim_due(session, held)
        if due is None:
            break
        made += 1
        with services.db.transaction() as session:
            request = requests.by_id(session, due.request_id)
            overtaken = outbox.is_superseded(session, due)
        assert request is not None
        with span("deliver", request.traceparent, request=str(request.id), status=due.status):
            ok = overtaken or _tell(services, request, due)
        delivered += ok
        with services.db.transaction("delivered") as session:
            given_up = outbox.store_attempt(session, due.id, delivered=ok, max_attempts=MAX_ATTEMPTS)
            if given_up and due.target != outbox.ALERT:
                outbox.enqueue_alert(session, due.request_id, "callback_given_up")
    return delivered


def _tell(services: Services, request: DeletionRequest, due: outbox.DueEntry) -> bool:
    """One attempt; the URL is opened in memory and never logged. True also if there is nobody to be told."""
    settings = services.settings
    try:
        call = _call_of(services, request, due)
        if call is None:
            return True
        http_status = send(
            call, seconds=settings.callback_seconds, allow_private=settings.callback_allow_private,
            allow=settings.callback_allow,
        )  # fmt: skip
        ok = 200 <= http_status < 300
        logger.info("callback", request=request.id, http_status=http_status)
    except (*UNREACHED, OSError, ValueError) as error:  # a host that is no host: ValueError
        logger.warning("callback failed", request=request.id, error=type(error).__name__)
        ok = False
    except Exception:  # a fault of ours, or a damaged column: it counts, or it would keep all others waiting for ever
        logger.exception("callback failed", request=request.id)
        ok = False
    return ok


def _call_of(services: Services, request: DeletionRequest, due: outbox.DueEntry) -> OutgoingCall | None:
    if due.target == outbox.ALERT:
        news = Notification(services, request, due.id, due.status, CallbackTarget(services.settings.alert_url))
        return alert(news) if services.settings.alert_url else None
    if request.wrapped_key is None or request.callback_url is None:
        return None
    envelope = DataKey.unwrap(request.id, request.wrapped_key, services.wrapper)
    target = CallbackTarget.loads(envelope.open("callback_url", request.callback_url).decode())[due.target]
    return DIALECTS[request.dialect](Notification(services, request, due.id, due.status, target))
