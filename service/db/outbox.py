"""The outbox: callbacks and alerts that are not delivered yet.

A *lane* is what one API key has sent to one host; the operator's alerts are a lane, too. API keys take turns, a lane
has one call under way at a time, and the whole lane pauses if its host does not answer. So a receiver that is slow or
gone delays nobody else, and no submitter can make another submitter's lane pause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db import callback_lanes
from service.db.due_requests import is_due
from service.db.limit_tables import CallbackLane
from service.db.tables import DeletionRequest, Outbox

MAX_BACKOFF = timedelta(hours=6)
ALERT = -1  # the target of an alert: the operator
MAX_ALERTS = 500  # in one call
MAX_PER_KEY = 2  # calls under way about the requests of one API key
CLAIM_LOCK = 7310582  # the advisory lock of claims: two at once could take two entries of one lane
# The first due entry of the API key whose last call is longest ago. It is of a lane that has no call now.
CLAIM = text("""
UPDATE outbox SET next_at = now() + :held, claimed_until = now() + :held
WHERE id = (
    SELECT entry.id
    FROM api_keys AS key
    CROSS JOIN LATERAL (
        SELECT due.id, due.next_at
        FROM (
            SELECT id, lane, next_at FROM outbox
            WHERE api_key_id = key.id AND delivered_at IS NULL AND next_at <= now()
            ORDER BY next_at LIMIT 100
        ) AS due
        WHERE NOT EXISTS (
            SELECT FROM outbox WHERE api_key_id = key.id AND claimed_until > now() AND lane = due.lane
        )
        ORDER BY due.next_at LIMIT 1
    ) AS entry
    LEFT JOIN LATERAL (
        SELECT claimed_until FROM outbox WHERE api_key_id = key.id AND claimed_until IS NOT NULL
        ORDER BY claimed_until DESC LIMIT 1
    ) AS last ON true
    WHERE (SELECT count(*) FROM outbox WHERE api_key_id = key.id AND claimed_until > now()) < :per_key
    ORDER BY last.claimed_until NULLS FIRST, entry.next_at
    LIMIT 1
)
RETURNING id, request_id, status, target
""")


class Outcome(Enum):
    """How an attempt ended."""

    DELIVERED = "the receiver took the message"
    NOT_SENT = "there is nobody to notify, or nothing new to say"
    GONE = "the address was purged before anybody was told"
    REFUSED = "the receiver answered, but not with 2xx"
    NO_ANSWER = "the receiver could not be reached, or did not answer in time"


class Callback(NamedTuple):
    """A callback about a request, as far as it has come."""

    status: str
    attempts: int
    delivered_at: datetime | None
    given_up: bool


@dataclass(frozen=True, slots=True)
class DueEntry:
    """A notification that is due: its request, the status it announces, and the index of its target."""

    id: UUID
    request_id: UUID
    status: str
    target: int


def enqueue(session: Session, request: DeletionRequest, status: str) -> None:
    """Queue a notification of a request's status for each of its targets, after the pause of the target's lane."""
    lanes: Sequence[int | None] = request.callback_lanes or [None] * request.callbacks
    session.add_all(
        Outbox(
            request_id=request.id,
            status=status,
            target=target,
            api_key_id=request.api_key_id,
            lane=lane,
            next_at=_after_pause(lane),
        )
        for target, lane in enumerate(lanes)
    )


def _after_pause(lane: int | None) -> ColumnElement[datetime]:
    """Now, or the end of the lane's pause."""
    pause = select(CallbackLane.next_at).where(CallbackLane.lane == lane).scalar_subquery()
    return func.greatest(func.now(), pause)  # NULL, no pause, counts for nothing


def assign_keys(session: Session) -> None:
    """Give callbacks the API key of their request. A process of an older release, still running, stores none."""
    without = Outbox.api_key_id.is_(None) & Outbox.delivered_at.is_(None) & (Outbox.target >= 0)
    owned = update(Outbox).where(without, DeletionRequest.id == Outbox.request_id)
    session.execute(
        owned.values(api_key_id=DeletionRequest.api_key_id), execution_options={"synchronize_session": False}
    )


def enqueue_alert(session: Session, request_id: UUID, status: str) -> None:
    """Queue an alert of a request's status for the operator, again if it was sent before."""
    lane = callback_lanes.OPERATOR
    entry = insert(Outbox).values(id=uuid4(), request_id=request_id, status=status, target=ALERT, lane=lane)
    entry = entry.on_conflict_do_update(
        index_elements=["request_id", "status"],
        index_where=text("target < 0"),
        set_={"next_at": func.now(), "created_at": func.now(), "delivered_at": None, "attempts": 0, "lane": lane},
    )
    session.execute(entry)


def enqueue_due_alerts(session: Session, before: datetime, status: str) -> None:
    """Queue an alert, once each, for requests that somebody waits for and that are due before a moment.

    All are one statement: a statement each took a sweep a second and more whenever `MAX_ALERTS` were due.
    """
    request = DeletionRequest
    alert = select(Outbox.id).where(Outbox.request_id == request.id, Outbox.target < 0, Outbox.status == status)
    names = ("id", "request_id", "status", "target", "lane")
    values = (func.gen_random_uuid(), request.id, literal(status), literal(ALERT), literal(callback_lanes.OPERATOR))
    due = select(*values).where(request.due_at < before, is_due(), ~alert.exists())
    due = due.order_by(request.due_at).limit(MAX_ALERTS)
    session.execute(insert(Outbox).from_select(names, due).on_conflict_do_nothing())


def claim_due(session: Session, held: timedelta) -> DueEntry | None:
    """The callback whose turn it is, put off by `held` so that no other worker sends it meanwhile."""
    session.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
    row = session.execute(CLAIM, {"held": held, "per_key": MAX_PER_KEY}).first()
    return DueEntry(*row) if row else None


def claim_due_alert(session: Session, held: timedelta) -> DueEntry | None:
    """The alert that has been due longest, put off by `held` so that no other worker sends it meanwhile."""
    due = (
        select(Outbox.id)
        .where(Outbox.api_key_id.is_(None), Outbox.target == ALERT, Outbox.delivered_at.is_(None))
        .where(Outbox.next_at <= func.now())
        .order_by(Outbox.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.execute(
        update(Outbox)
        .where(Outbox.id == due.scalar_subquery())
        .values(next_at=func.now() + held)
        .returning(Outbox.id, Outbox.request_id, Outbox.status, Outbox.target)
    ).first()
    return DueEntry(*row) if row else None


def is_superseded(session: Session, due: DueEntry) -> bool:
    """Whether a newer notification reached the same target already: the target would take this one for the newest."""
    entry = session.get(Outbox, due.id)
    if entry is None or not entry.attempts or due.target < 0:
        return False
    later = select(Outbox.id).where(Outbox.request_id == due.request_id, Outbox.target == due.target)
    later = later.where(Outbox.created_at > entry.created_at, Outbox.delivered_at.is_not(None))
    return session.scalar(later.limit(1)) is not None


def store_attempt(session: Session, entry_id: UUID, outcome: Outcome, max_attempts: int) -> list[UUID]:
    """Store the result of an attempt; the next one is after 2, 4, 8, ... seconds, six hours at most.

    A host that did not answer several times in a row has its whole lane put off. One that answers ends the pause.

    Returns:
        The requests of callbacks that are given up: this one, or others of the lane that are too old.
    """
    entry = session.get(Outbox, entry_id, with_for_update=True)
    if entry is None:
        return []
    entry.attempts += 1
    now = datetime.now(UTC)
    entry.claimed_until = now if entry.target != ALERT else None
    if outcome is Outcome.NOT_SENT:
        entry.delivered_at, entry.next_at = now, None
    elif outcome is Outcome.DELIVERED:
        entry.delivered_at = now
    elif entry.attempts >= max_attempts or outcome is Outcome.GONE:
        entry.next_at = None
    else:
        entry.next_at = now + min(MAX_BACKOFF, timedelta(seconds=2**entry.attempts))
    is_given_up = entry.next_at is None and entry.delivered_at is None and entry.target != ALERT
    given_up = [entry.request_id] if is_given_up else []
    session.flush()
    if entry.lane is not None and outcome in (Outcome.DELIVERED, Outcome.REFUSED):
        callback_lanes.end_pause(session, entry.lane)
    if entry.lane is not None and outcome is Outcome.NO_ANSWER:
        given_up += callback_lanes.store_failure(session, entry.lane, MAX_BACKOFF)
    return given_up


def callbacks(session: Session, request_id: UUID, most: int = 100) -> list[Callback]:
    """The callbacks about a request, oldest first; without alerts, and those that there was no need to send."""
    given_up = Outbox.delivered_at.is_(None) & Outbox.next_at.is_(None)
    query = select(Outbox.status, Outbox.attempts, Outbox.delivered_at, given_up)
    sent = Outbox.delivered_at.is_(None) | Outbox.next_at.is_not(None)
    query = query.where(Outbox.request_id == request_id, Outbox.target >= 0, sent)
    return [Callback(*row) for row in session.execute(query.order_by(Outbox.created_at).limit(most))]


def undelivered_count(session: Session) -> int:
    """How many notifications are neither delivered nor given up."""
    query = select(func.count()).where(Outbox.delivered_at.is_(None), Outbox.next_at.is_not(None))
    return session.scalar(query) or 0
