"""What the leases of jobs and of shards of rechecks have alike: when a row can be claimed, and what a claim writes."""

from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, or_, text, true

from service.db.recheck_tables import RecheckShard
from service.db.tables import Job

Leased: TypeAlias = type[Job] | type[RecheckShard]
FENCES = 2**32  # a fence is its claim's number times this, and a random rest
NEXT_FENCE = text(f"(fence / {FENCES} + 1) * {FENCES} + floor(random() * {FENCES})::bigint")
MOST_DOUBLED = 8  # the pauses after lost workers: 0, 1, 3, 7 s and so on, up to four minutes


def free(row: Leased) -> tuple[ColumnElement[bool], ...]:
    """Whether nobody holds a row, and its back-off is over. After a lost worker it waits, longer after each."""
    pause = func.make_interval(0, 0, 0, 0, 0, 0, func.power(2, func.least(row.losses, MOST_DOUBLED)) - 1)
    return (
        or_(row.owner.is_(None), row.lease_expires_at + pause < func.now()),
        or_(row.not_before.is_(None), row.not_before <= func.now()),
    )


def fits(row: Leased, memory: int | None) -> ColumnElement[bool]:
    """Whether a row may fit into a slot of so many bytes: it has outgrown no slot of as many; None takes any."""
    return true() if memory is None else func.coalesce(row.outgrew, 0) < memory


def claim_values(row: Leased, owner: str, lease_seconds: float) -> dict[str, object]:
    """What a claim writes.

    A lease that ran out is a lost worker, and no attempt: its worker was killed, or its host has gone. The owner is
    noted with the home of the log: after a move, what the claim rests on may be lost.
    """
    is_free = row.owner.is_(None)
    return {
        "owner": func.concat(func.database_home(), " ", owner),
        "lease_expires_at": func.now() + timedelta(seconds=lease_seconds),
        "fence": NEXT_FENCE,
        "attempts": case((is_free, row.attempts + 1), else_=row.attempts),
        "losses": case((is_free, row.losses), else_=row.losses + 1),
    }


def held(row: Leased, row_id: UUID, fence: int) -> tuple[ColumnElement[bool], ...]:
    """What a claim has to meet to hold its row."""
    return row.id == row_id, row.fence == fence, func.starts_with(row.owner, func.database_home())


def pause_after(losses: int) -> int:
    """Seconds that a row waits after it has lost so many workers in a row."""
    return int(2 ** min(losses, MOST_DOUBLED)) - 1
