"""Queries on rechecks: which are due, claims of their shards, and what they have found."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Float,
    Text,
    Uuid,
    any_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, joinedload, selectinload

from service.db import leases
from service.db.paging import Page, page
from service.db.recheck_tables import Recheck, RecheckShard
from service.db.requests import custody
from service.db.tables import DeletionRequest, Model, Version
from service.domain.errors import LostLease
from service.domain.states import RecheckOutcome

SHARD_RECORDS = 128  # a shard's thresholds cost as much as about 64 of them
DEFAULT_DAYS = 30  # of a policy that a release before rechecks wrote
RETRY_DAYS = 7  # after a recheck of which a shard was given up


def due_models(session: Session, among: UUID | None = None) -> list[UUID]:
    """The models with a published version whose last complete recheck, or first version, is older than their policy.

    Args:
        session: The transaction.
        among: The one model that is asked about; None: all.
    """
    given = Model.policy.has_key("recheck_days")
    days = case((given, cast(Model.policy["recheck_days"].astext, Float)), else_=DEFAULT_DAYS)
    of_model = select(func.max(Recheck.created_at)).where(Recheck.model_id == Model.id).correlate(Model)
    tried = of_model.scalar_subquery()
    complete = of_model.where(Recheck.outcome != RecheckOutcome.INCOMPLETE).scalar_subquery()
    first = select(func.min(Version.created_at)).where(Version.model_id == Model.id, Version.number > 0)
    since = func.coalesce(complete, first.correlate(Model).scalar_subquery())
    is_open = select(Recheck.id).where(Recheck.model_id == Model.id, Recheck.finished_at.is_(None)).exists()
    query = select(Model.id).where(~is_open, since < func.now() - _days(days))
    query = query.where(or_(tried.is_(None), tried < func.now() - _days(func.least(days, RETRY_DAYS))))
    return list(session.scalars(query if among is None else query.where(Model.id == among)))


def _days(days: object) -> object:
    """An interval of so many days."""
    return func.make_interval(0, 0, 0, 0, 0, 0, days * 86_400)  # type: ignore[operator]  # a column


def begin(session: Session, model: Model, version: Version) -> Recheck | None:
    """Begin a recheck of what a version must have forgotten; None if nothing is in custody."""
    forgotten = select(DeletionRequest.seq, DeletionRequest.records_count).where(*custody(model.id))
    forgotten = forgotten.where(_by_then(version.number, func.now())).order_by(DeletionRequest.seq)
    shards = [*_shards((row[0], row[1]) for row in session.execute(forgotten))]
    if not shards:
        return None
    recheck = Recheck(model_id=model.id, version_id=version.id, requests=sum(map(len, shards)))
    session.add(recheck)
    session.flush()
    session.add_all(RecheckShard(recheck_id=recheck.id, first_seq=seqs[0], last_seq=seqs[-1]) for seqs in shards)
    return recheck


def _by_then(number: int, begun: object) -> ColumnElement[bool]:
    """Whether a request had ended when a recheck of this version began, by this version or an earlier one."""
    request = DeletionRequest
    return (request.finished_at <= begun) & (func.coalesce(request.version, request.came_back_from) <= number)


def _shards(requests: Iterable[tuple[int, int]]) -> Iterable[list[int]]:
    """Requests (seq, number of records) in runs of SHARD_RECORDS records at most, or of one request."""
    seqs, records = list[int](), 0
    for seq, count in requests:
        if seqs and records + count > SHARD_RECORDS:
            yield seqs
            seqs, records = [], 0
        seqs.append(seq)
        records += count
    if seqs:
        yield seqs


def of_shard(shard: RecheckShard) -> tuple[ColumnElement[bool], ...]:
    """What a request in custody meets that a shard measures."""
    then = _by_then(shard.recheck.version.number, shard.recheck.created_at)
    return DeletionRequest.seq.between(shard.first_seq, shard.last_seq), then


def is_empty(session: Session, shard: RecheckShard) -> bool:
    """Whether nothing is left of a shard to measure: all was purged, or is open again."""
    left = select(DeletionRequest.id).where(*custody(shard.recheck.model_id), *of_shard(shard))
    return session.scalar(left.limit(1)) is None


def lock_came_back(session: Session, shard: RecheckShard) -> list[DeletionRequest]:
    """The requests of a shard that came back and are still in custody, locked. Others than its own are not believed."""
    named = DeletionRequest.ref == any_(literal(list(shard.came_back), ARRAY(Text)))
    query = select(DeletionRequest).where(*custody(shard.recheck.model_id), *of_shard(shard), named)
    return list(session.scalars(query.order_by(DeletionRequest.due_at, DeletionRequest.seq).with_for_update()))


def _claimable(memory: int | None) -> tuple[ColumnElement[bool], ...]:
    """What a shard meets that a worker with a slot of so many bytes may take; None takes any."""
    return RecheckShard.finished_at.is_(None), *leases.free(RecheckShard), leases.fits(RecheckShard, memory)


def is_any(session: Session, memory: int | None = None) -> bool:
    """Whether a shard could be claimed."""
    return session.scalar(select(RecheckShard.id).where(*_claimable(memory)).limit(1)) is not None


def claim(session: Session, owner: str, memory: int | None = None, *, lease_seconds: float) -> tuple[UUID, int] | None:
    """Claim the oldest shard that is free or has lost its worker; returns it and its new fence, or None."""
    shard = RecheckShard
    oldest = select(shard.id).where(*_claimable(memory)).order_by(shard.created_at, shard.first_seq).limit(1)
    shard_id = session.scalar(oldest.with_for_update(skip_locked=True))
    if shard_id is None:
        return None
    claimed = update(shard).where(shard.id == shard_id).values(leases.claim_values(shard, owner, lease_seconds))
    return shard_id, session.scalar(claimed.returning(shard.fence)) or 0


def heartbeat(session: Session, shard_id: UUID, fence: int, *, lease_seconds: float) -> bool:
    """Extend the lease under the fence; false if it is lost."""
    extended = update(RecheckShard).where(*leases.held(RecheckShard, shard_id, fence))
    extended = extended.values(lease_expires_at=func.now() + timedelta(seconds=lease_seconds))
    return session.scalar(extended.returning(RecheckShard.id)) is not None


def owned(session: Session, shard_id: UUID, fence: int) -> RecheckShard:
    """The shard, locked, with its recheck, if this fence still holds it.

    Raises:
        LostLease: Another worker claimed the shard since, or it was released.
    """
    recheck = joinedload(RecheckShard.recheck)
    query = select(RecheckShard).options(recheck.joinedload(Recheck.version), recheck.joinedload(Recheck.model))
    shard = session.scalar(query.where(*leases.held(RecheckShard, shard_id, fence)).with_for_update(of=RecheckShard))
    if shard is None:
        raise LostLease(f"shard {shard_id}: fence {fence} is not current")
    return shard


def release(shard: RecheckShard, *, delay_seconds: float = 0, count: bool = False) -> None:
    """Release an owned shard for another attempt; `count` says whether the present attempt counts."""
    shard.owner, shard.lease_expires_at = None, None
    shard.not_before = datetime.now(UTC) + timedelta(seconds=delay_seconds) if delay_seconds else None
    shard.attempts -= not count


def finish(shard: RecheckShard, *, reason: str | None = None) -> None:
    """End a shard; with a reason it is given up."""
    shard.owner, shard.lease_expires_at, shard.reason = None, None, reason
    shard.finished_at = datetime.now(UTC)


def give_up_lost(session: Session, max_losses: int) -> None:
    """End the shards that have lost their last allowed worker."""
    shard = RecheckShard
    lost = select(shard).where(shard.finished_at.is_(None), shard.losses + 1 >= max_losses)
    for one in session.scalars(lost.where(shard.lease_expires_at < func.now()).with_for_update(skip_locked=True)):
        finish(one, reason="workers_lost")


def give_up_outgrown(session: Session, largest: int, *, quiet_seconds: float) -> None:
    """End the shards that have fitted into no slot of a living worker for a while; it has so many bytes at most."""
    shard = RecheckShard
    outgrown = select(shard).where(shard.finished_at.is_(None), shard.owner.is_(None), shard.outgrew >= largest)
    outgrown = outgrown.where(shard.not_before < func.now() - timedelta(seconds=quiet_seconds))
    for one in session.scalars(outgrown.with_for_update(skip_locked=True)):
        finish(one, reason="model_too_large")


def unfinished(session: Session, among: list[UUID]) -> set[UUID]:
    """The shards among these that have not ended."""
    listed = RecheckShard.id == any_(literal(among, ARRAY(Uuid)))
    return set(session.scalars(select(RecheckShard.id).where(listed, RecheckShard.finished_at.is_(None))))


def ended(session: Session) -> Recheck | None:
    """An open recheck of which every shard has ended, locked, with its shards, version and model."""
    waits = select(RecheckShard.id).where(RecheckShard.recheck_id == Recheck.id, RecheckShard.finished_at.is_(None))
    options = (selectinload(Recheck.shards), joinedload(Recheck.version), joinedload(Recheck.model))
    query = select(Recheck).options(*options).where(Recheck.finished_at.is_(None), ~waits.exists())
    return session.scalar(query.limit(1).with_for_update(skip_locked=True, of=Recheck))


def forget_shards(session: Session, recheck: Recheck) -> None:
    """Delete the shards of a recheck that has ended."""
    session.execute(delete(RecheckShard).where(RecheckShard.recheck_id == recheck.id))


def listing(session: Session, model: Model, cursor: str | None, limit: int) -> Page[Recheck]:
    """A page of a model's rechecks, newest first, with their versions."""
    query = select(Recheck).options(joinedload(Recheck.version)).where(Recheck.model_id == model.id)
    return page(session, query, Recheck.seq, int, cursor, limit, descending=True)


def under_way(session: Session, model: Model) -> tuple[int, int, int]:
    """Of a model's open recheck: its shards, those that have ended, and the requests that they measured."""
    shard = RecheckShard
    counts = (func.count(), func.count(shard.finished_at), func.coalesce(func.sum(shard.measured), 0))
    query = select(*counts).join(Recheck, Recheck.id == shard.recheck_id)
    shards, finished, measured = session.execute(query.where(Recheck.model_id == model.id)).one()
    return shards, finished, measured
