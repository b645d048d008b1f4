"""deliver: send notifications to submitters and alerts to the operator, at least once, with back-off."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import httpcore
from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.callbacks.dialects import CALLBACK_BUILDERS, Notification, alert
from service.callbacks.webhooks import OutgoingCall, send
from service.db import outbox, requests
from service.db.outbox import Outcome
from service.db.tables import DeletionRequest
from service.domain.submission import CallbackTarget
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.privacy.records import request_data_key

logger = get_logger(__name__)
MAX_ATTEMPTS = 26  # three days
UNREACHED = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)
CALLBACK_SLOTS = threading.BoundedSemaphore(4)  # callbacks of a process that are under way at once
ALERT_SLOTS = threading.BoundedSemaphore(1)  # alerts have a slot of their own: no submitter's receiver delays them
Claim: TypeAlias = Callable[[Session, timedelta], outbox.DueEntry | None]


def deliver_callbacks(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Send callbacks that are due, while `go_on()` is true; returns how many were delivered.

    If all slots of this process are taken, whoever has them sends these callbacks, too.
    """
    return _deliver(services, CALLBACK_SLOTS, outbox.claim_due, go_on)


def deliver_alerts(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Send the operator's alerts that are due, while `go_on()` is true; returns how many were delivered."""
    return _deliver(services, ALERT_SLOTS, outbox.claim_due_alert, go_on)


def _deliver(services: Services, slots: threading.BoundedSemaphore, claim: Claim, go_on: Callable[[], bool]) -> int:
    """Send entries of the outbox one by one, if a slot is free; returns how many were delivered."""
    if not slots.acquire(blocking=False):
        return 0
    delivered = 0
    held = timedelta(seconds=2 * services.settings.callback_seconds)  # twice an attempt's time-out
    try:
        while go_on():
            with services.db.transaction("deliver") as session:
                due = claim(session, held)
            if due is None:
                break
            outcome = _send_entry(services, due)
            delivered += outcome in (Outcome.DELIVERED, Outcome.NOT_SENT)
            with services.db.transaction("delivered") as session:
                for request_id in outbox.store_attempt(session, due.id, outcome, MAX_ATTEMPTS):
                    outbox.enqueue_alert(session, request_id, "callback_given_up")
    finally:
        slots.release()
    return delivered


def _send_entry(services: Services, due: outbox.DueEntry) -> Outcome:
    """Send one entry, unless a newer one has reached its target."""
    with services.db.transaction() as session:
        request = requests.by_id(session, due.request_id)
        superseded = outbox.is_superseded(session, due)
    assert request is not None
    with span("deliver", request.traceparent, request=str(request.id), status=due.status):
        return Outcome.NOT_SENT if superseded else _attempt(services, request, due)


def _attempt(services: Services, request: DeletionRequest, due: outbox.DueEntry) -> Outcome:
    """Send one entry. The URL is unsealed in memory and never logged."""
    settings = services.settings
    try:
        call = _outgoing_call(services, request, due)
        if call is None:
            return Outcome.NOT_SENT if due.target == outbox.ALERT else Outcome.GONE
        http_status = send(
            call,
            seconds=settings.callback_seconds,
            allow_private=settings.callback_allow_private,
            allow=settings.callback_allow,
        )
    except (*UNREACHED, OSError, ValueError) as error:  # ValueError: the URL's host is not a host name
        logger.warning("callback failed", request=request.id, error=type(error).__name__)
        return Outcome.NO_ANSWER
    except Exception:  # a bug, or a damaged column: it counts as an attempt, or it would block all others for ever
        logger.exception("callback failed", request=request.id)
        return Outcome.REFUSED
    logger.info("callback", request=request.id, http_status=http_status)
    return Outcome.DELIVERED if 200 <= http_status < 300 else Outcome.REFUSED


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
