"""Queries of `unlearnd doctor`."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service.audit.manifest import FileEntry
from service.db.corpus_tables import Corpus
from service.db.log_tables import AuditEntry
from service.db.tables import DeletionRequest, Job, Model, Outbox, Version
from service.domain.states import TERMINAL_STAGES, Hold, RequestStatus, Stage

IDLE_SLOTS = text(
    "SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots"
    " WHERE NOT active"
)
WAITS = text(
    "SELECT current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (SELECT FROM pg_stat_replication)"
)
CONNECTIONS = text(
    "SELECT count(*), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    " FROM pg_stat_activity WHERE datid IS NOT NULL"
)
NEWEST = 200  # versions whose files the doctor checks


def newest_sealed_request(session: Session) -> tuple[UUID, bytes] | None:
    """(id, wrapped data key) of the newest request that is not purged."""
    query = select(DeletionRequest.id, DeletionRequest.wrapped_key).where(DeletionRequest.wrapped_key.is_not(None))
    row = session.execute(query.order_by(DeletionRequest.seq.desc()).limit(1)).first()
    return (row[0], row[1] or b"") if row else None


def owns_the_log(session: Session) -> bool:
    """Whether this connection's role owns the log's table: an owner can disable the triggers that protect it."""
    query = "SELECT pg_has_role(current_user, tableowner, 'USAGE') FROM pg_tables WHERE tablename = 'audit_entries'"
    return bool(session.scalar(text(query)))


class StoredVersion(NamedTuple):
    """A version, and the files that storage has of it."""

    model: str
    number: int
    digest: str
    files: list[FileEntry]


def versions_on_disk(session: Session, *, newest: int | None = None) -> list[StoredVersion]:
    """The versions, newest first; all of them, or only so many."""
    query = select(Model.name, Version.number, Version.digest, Version.files).join(Model, Model.id == Version.model_id)
    rows = session.execute(query.order_by(Version.created_at.desc()).limit(newest))
    return [StoredVersion(*row) for row in rows]


def abandoned_jobs(session: Session, seconds: float) -> list[UUID]:
    """Jobs that no worker has held for `seconds`: the lease ran out, or no worker ever claimed the job."""
    since = func.coalesce(Job.lease_expires_at, Job.not_before, Job.created_at)
    query = select(Job.id).where(Job.stage.not_in(TERMINAL_STAGES), since < func.now() - timedelta(seconds=seconds))
    return list(session.scalars(query))


def outgrown(session: Session, largest: int) -> list[tuple[UUID, int]]:
    """(id, bytes) of jobs that did not fit into a slot of so many bytes, if no slot has more than `largest`."""
    waits = Job.stage.not_in(TERMINAL_STAGES), Job.owner.is_(None)
    query = select(Job.id, Job.outgrew).where(*waits, Job.outgrew >= largest).order_by(Job.seq)
    return [(job_id, memory or 0) for job_id, memory in session.execute(query)]


def quarantined_jobs(session: Session) -> list[tuple[UUID, str]]:
    """(id, reason) of quarantined jobs with a request that nobody has retried or resolved."""
    failed = select(DeletionRequest.id).where(
        DeletionRequest.job_id == Job.id,
        DeletionRequest.status == RequestStatus.FAILED,
        DeletionRequest.resolved_at.is_(None),
    )
    query = select(Job.id, Job.reason).where(Job.stage == Stage.QUARANTINED, failed.exists()).order_by(Job.seq)
    return [(job_id, reason or "") for job_id, reason in session.execute(query)]


def unbatched(session: Session, seconds: float) -> int:
    """How many requests have been pending for `seconds` while their model is idle."""
    busy = select(Job.id).where(Job.model_id == DeletionRequest.model_id, Job.stage.not_in(TERMINAL_STAGES)).exists()
    old = DeletionRequest.accepted_at < func.now() - timedelta(seconds=seconds)
    query = select(func.count()).where(DeletionRequest.status == RequestStatus.PENDING, old, ~busy)
    return session.scalar(query.where(DeletionRequest.hold.is_(None))) or 0


def unsearchable(session: Session) -> list[tuple[str, int]]:
    """(reason, how many) of requests whose person cannot be searched for."""
    reason = DeletionRequest.reason
    pending = DeletionRequest.status == RequestStatus.PENDING
    held = pending & (DeletionRequest.hold == Hold.RESOLVE) & reason.is_not(None)
    query = select(reason, func.count()).where(held).group_by(reason).order_by(reason)
    return [(str(reason), count) for reason, count in session.execute(query)]


def failed_corpora(session: Session) -> list[tuple[str, str, str]]:
    """(model, corpus, reason) of corpora that could not be indexed."""
    query = select(Model.name, Corpus.name, Corpus.reason).join(Model, Model.id == Corpus.model_id)
    rows = session.execute(query.where(Corpus.state == "failed").order_by(Model.name, Corpus.name))
    return [(model, corpus, reason or "") for model, corpus, reason in rows]


def callbacks_given_up(session: Session) -> int:
    """How many callbacks the service has given up."""
    query = select(func.count()).select_from(Outbox)
    return session.scalar(query.where(Outbox.delivered_at.is_(None), Outbox.next_at.is_(None))) or 0


def callbacks_due(session: Session) -> tuple[int, datetime | None]:
    """How many callbacks are due and not delivered, and since when the oldest is."""
    query = select(func.count(), func.min(Outbox.next_at)).where(Outbox.delivered_at.is_(None))
    count, oldest = session.execute(query.where(Outbox.next_at < func.now())).one()
    return count, oldest


def idle_slots(session: Session) -> list[tuple[str, int]]:
    """(name, bytes that the server keeps for it) of each replication slot that no standby uses."""
    return [(name, kept) for name, kept in session.execute(IDLE_SLOTS) if kept]


def waits_for_standby(session: Session) -> bool:
    """Whether commits wait for a standby and none is connected."""
    return bool(session.scalar(WAITS))


def connections(session: Session) -> tuple[int, int]:
    """The connections of clients, and the most that the server takes from them."""
    used, most = session.execute(CONNECTIONS).one()
    return used, most


def newest_entries(session: Session, count: int) -> Sequence[AuditEntry]:
    """The newest entries of the log, newest first."""
    return session.scalars(select(AuditEntry).order_by(AuditEntry.index.desc()).limit(count)).all()
