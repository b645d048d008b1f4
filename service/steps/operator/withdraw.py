"""withdraw: stop handing out a version. Its certificate, its log entries and its folder stay.

`latest` never falls behind a completed request. So requests that only the withdrawn version fulfilled are open again,
and the next job starts from the newest version that is left.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import models, requests, withdrawals
from service.db.tables import DeletionRequest, Model, Version
from service.domain.errors import Conflict, NotFound, StorageAway


def withdraw_version(
    services: Services, name: str, number: int, reason: str, api_key_id: UUID, *, reopen: bool = False
) -> None:
    """Withdraw a version.

    Args:
        services: The services of this process.
        name: The model.
        number: The version.
        reason: A code.
        reopen: Withdraw it also if completed requests become open again.

    Raises:
        NotFound: The model or version does not exist.
        Conflict: The version is withdrawn already, or it is the only one that is handed out; requests would be open
            again and `reopen` is false; or their texts were purged, so that they cannot be unlearned again.
    """
    with services.db.transaction() as session:
        model, version = _model_and_version(session, name, number, lock=True)
        if version.withdrawn_at is not None:
            raise Conflict("The version is withdrawn already.")
        remaining = models.newest_version(session, model, without=version)
        if remaining is None:
            raise Conflict("It is the only version that is handed out; publish another one first.")
        unfulfilled = requests.fulfilled_after(session, model.id, remaining.number)
        _check_cost(unfulfilled, remaining, reopen=reopen)
        withdrawals.store(session, version, remaining, unfulfilled, reason, api_key_id)
    services.queue.wake("batch", model.id)
    services.queue.wake("deliver")
    with suppress(StorageAway):  # the collector completes the ledger
        services.storage.add_withdrawn(name, number, reason)


class Cost(NamedTuple):
    """What a withdrawal would cost.

    Attributes:
        latest: The version that would be the newest; None: it is the only one that is handed out.
        reopened: How many completed requests would be open again.
        overdue: How many of them are past their deadlines.
        purged: Of how many of them the texts were purged. One is enough to forbid it.
    """

    latest: int | None
    reopened: int
    overdue: int
    purged: int


def withdrawal_cost(services: Services, name: str, number: int) -> Cost:
    """What it would cost to withdraw a version now.

    Raises:
        NotFound: The model or version does not exist.
    """
    with services.db.reading() as session:
        model, version = _model_and_version(session, name, number)
        remaining = models.newest_version(session, model, without=version)
        if remaining is None:
            return Cost(None, 0, 0, 0)
        return Cost(remaining.number, *requests.fulfilled_after_counts(session, model.id, remaining.number))


def _model_and_version(session: Session, name: str, number: int, *, lock: bool = False) -> tuple[Model, Version]:
    """The model, locked if `lock`, and its version."""
    model = models.by_name(session, name, lock=lock)
    version = models.version(session, model, number) if model else None
    if model is None or version is None:
        raise NotFound("There is no such version.")
    return model, version


def _check_cost(unfulfilled: Sequence[DeletionRequest], remaining: Version, *, reopen: bool) -> None:
    """Refuse a withdrawal that costs more than the caller has said that it may."""
    purged = sum(request.wrapped_key is None for request in unfulfilled)
    if purged:
        raise Conflict(
            f"Version {remaining.number} would be the newest, and it remembers {purged} requests whose texts were "
            "purged: they cannot be unlearned again. Publish a newer version first.",
            code="texts_purged",
        )
    if unfulfilled and not reopen:
        overdue = sum(request.due_at < datetime.now(UTC) for request in unfulfilled)
        raise Conflict(
            f"Version {remaining.number} would be the newest, and it remembers {len(unfulfilled)} completed requests. "
            f"They would be open again, {overdue} of them past their deadlines. Send reopen = true to accept that.",
            field="reopen",
            code="would_reopen",
        )
