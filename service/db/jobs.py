"""Queries on jobs: claims under a lease and a fence, and progress. `owned` guards every write of a worker."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Text,
    Uuid,
    any_,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.selectable import ForUpdateArg

from service.db import job_events, leases
from service.db.paging import Page, page
from service.db.tables import ACTIVE_JOB, DeletionRequest, Job, JobEvent, Version
from service.domain.disclosure import Contributors, is_disclosed, redacted
from service.domain.errors import IllegalTransition, LostLease
from service.domain.states import STAGE_TRANSITIONS, TERMINAL_STAGES, Outcome, Stage, check_stage
from service.schemas.report import redacted_report


def by_id(session: Session, job_id: UUID, *, lock: bool = False) -> Job | None:
    """The job with this id, its model and its versions; the job is locked if `lock`."""
    options = [joinedload(Job.model), joinedload(Job.parent_version), joinedload(Job.version)]
    return session.get(Job, job_id, options=options, with_for_update=ForUpdateArg(of=Job) if lock else None)


def has_request(session: Session, job_id: UUID, api_key_id: UUID) -> bool:
    """Whether an API key submitted one of the job's requests."""
    query = select(DeletionRequest.id).where(DeletionRequest.job_id == job_id, DeletionRequest.api_key_id == api_key_id)
    return session.scalar(query.limit(1)) is not None


def listing(
    session: Session,
    cursor: str | None,
    limit: int,
    *,
    model_id: UUID | None,
    stage: str | None,
    api_key_id: UUID | None = None,
) -> Page[Job]:
    """A page of jobs, newest first; only those with a request of an API key, if one is given."""
    query = select(Job).options(joinedload(Job.model), joinedload(Job.parent_version), joinedload(Job.version))
    if model_id:
        query = query.where(Job.model_id == model_id)
    if stage:
        query = query.where(Job.stage == stage)
    if api_key_id:
        own = (DeletionRequest.job_id == Job.id) & (DeletionRequest.api_key_id == api_key_id)
        query = query.where(select(DeletionRequest.id).where(own).exists())
    return page(session, query, Job.seq, int, cursor, limit, descending=True)


def claim(session: Session, job_id: UUID, owner: str, stages: frozenset[Stage], *, lease_seconds: float) -> int | None:
    """Claim a job that is free or whose lease ran out; returns the new fence, or None."""
    values = leases.claim_values(Job, owner, lease_seconds)
    values |= {"progress_at": func.now(), "started_at": func.coalesce(Job.started_at, func.now())}
    claimed = update(Job).where(Job.id == job_id, *claimable(stages)).values(values)
    return session.scalar(claimed.returning(Job.fence))


def claimable(stages: frozenset[Stage]) -> tuple[ColumnElement[bool], ...]:
    """What a job in these stages has to meet to be claimed."""
    return Job.stage.in_(stages), *leases.free(Job)


def note_progress(job: Job) -> None:
    """Forget the failures and losses of an owned job, because it has come further than any attempt before."""
    job.attempts, job.losses = 1, 0


def heartbeat(
    session: Session, job_id: UUID, fence: int, steps: int, *, lease_seconds: float, stall_seconds: float
) -> bool:
    """Extend the lease under the fence; false if the lease is lost, or if the job made no step for too long."""
    now = func.now()
    extended = (
        update(Job)
        .where(*leases.held(Job, job_id, fence))
        .where(or_(Job.steps != steps, Job.progress_at > now - timedelta(seconds=stall_seconds)))
        .values(
            lease_expires_at=now + timedelta(seconds=lease_seconds),
            progress_at=case((Job.steps != steps, now), else_=Job.progress_at),
            steps=steps,
        )
        .returning(Job.id)
    )
    return session.scalar(extended) is not None


def owned(session: Session, job_id: UUID, fence: int) -> Job:
    """The job, locked, if this fence still holds it.

    Raises:
        LostLease: Another worker claimed the job since, or the job was released.
    """
    job = session.scalar(select(Job).where(*leases.held(Job, job_id, fence)).with_for_update())
    if job is None:
        raise LostLease(f"job {job_id}: fence {fence} is not current")
    return job


def advance(
    session: Session,
    job: Job,
    target: Stage,
    *,
    release: bool = False,
    table: Mapping[Stage, set[Stage]] = STAGE_TRANSITIONS,
) -> None:
    """Move an owned job to the next stage: the only way to write `stage`. `release` frees it for the stage's worker.

    Raises:
        IllegalTransition: The table does not list the move, or the row moved meanwhile.
    """
    is_news = job.stage != target
    if is_news:
        check_stage(job.stage, target, table)
        if target not in TERMINAL_STAGES and list(Stage).index(target) > list(Stage).index(Stage(job.stage)):
            note_progress(job)
    if release or target in TERMINAL_STAGES:
        job.owner, job.lease_expires_at, job.woken_at = None, None, None
    if release:
        job.attempts, job.losses = 0, 0
    if target in TERMINAL_STAGES:
        job.finished_at = datetime.now(UTC)
    if is_news:  # written last: a compute worker may not change a job that it has handed on
        session.flush()
        _write_stage(session, job, target)
        job_events.add(session, job.id, "stage", {"stage": target, "progress": job.progress})


def _write_stage(session: Session, job: Job, target: Stage) -> None:
    """Write a stage if the row still has the stage that the table was checked for."""
    guarded = update(Job).where(Job.id == job.id, Job.stage == job.stage).values(stage=target).returning(Job.id)
    if session.execute(guarded, execution_options={"synchronize_session": False}).first() is None:
        raise IllegalTransition(f"job: no longer {job.stage}")
    set_committed_value(job, "stage", target)


def finish(session: Session, job: Job, outcome: Outcome, reason: str | None) -> None:
    """End an owned job with the outcome of its tests."""
    job.outcome, job.reason, job.progress = outcome, reason, 1.0
    advance(session, job, Stage.DONE)
    job_events.add(session, job.id, "done", {"outcome": outcome, "reason": reason, "progress": 1.0})


def oldest_queued_seconds(session: Session) -> float:
    """How many seconds the oldest queued job has waited; 0 if no job is queued."""
    created = session.scalar(select(func.min(Job.created_at)).where(Job.stage == Stage.QUEUED))
    return (datetime.now(UTC) - created).total_seconds() if created else 0.0


def redact_means(session: Session, request: DeletionRequest) -> None:
    """Remove the means of every job of few submitters that measured a request: they describe a person of purged texts.

    It may have left that job, which was split or lost its version: the report still has its ref. Of jobs that were
    given up without a report, and that all requests have left, nobody knows whom they measured.
    """
    memorised = literal_column("jobs.report -> 'memorised'", JSONB)  # as its index has it
    given_up = (Job.stage == Stage.QUARANTINED) & Job.report.is_(None)
    given_up &= ~select(DeletionRequest.id).where(DeletionRequest.job_id == Job.id).exists()
    for with_it in (Job.id == request.job_id, memorised.contains([request.ref]), given_up):  # each by its index
        for job in session.scalars(select(Job).where(Job.model_id == request.model_id, with_it)):
            _redact(session, job)


def _redact(session: Session, job: Job) -> None:
    """Remove the means of a job from its rows, unless they may be shown."""
    if not is_disclosed(job.report.contributors if job.report else measured_contributors(job)):
        job.metrics, job.report = redacted(job.metrics), job.report and redacted_report(job.report)
        for job_event in session.scalars(select(JobEvent).where(JobEvent.job_id == job.id)):
            job_event.data = redacted(job_event.data)
    for version in session.scalars(select(Version).where(Version.job_id == job.id)):  # a restored job has no report
        if version.metrics is not None and not is_disclosed(version.metrics.contributors):
            version.metrics = redacted_report(version.metrics)


def measured_contributors(job: Job) -> Contributors:
    """Whose texts the means of a job are over, as its measurements before training say."""
    return Contributors(job.metrics.get("submitters"), job.metrics.get("largest_share"))


def release(job: Job, *, delay_seconds: float, count: bool) -> None:
    """Release an owned job for another attempt; `count` says whether the present attempt counts."""
    job.owner, job.lease_expires_at, job.woken_at = None, None, None
    job.not_before = datetime.now(UTC) + timedelta(seconds=delay_seconds) if delay_seconds else None
    if not count:
        job.attempts = max(0, job.attempts - 1)


def wakeable(session: Session, stages: frozenset[Stage], *, quiet_seconds: float) -> list[UUID]:
    """Claimable jobs in these stages that had no wake-up for `quiet_seconds`; marks them as woken."""
    now = func.now()
    job_ids = session.scalars(
        update(Job)
        .where(*claimable(stages), or_(Job.woken_at.is_(None), Job.woken_at < now - timedelta(seconds=quiet_seconds)))
        .values(woken_at=now)
        .returning(Job.id)
    )
    return list(job_ids)


def newest_was_split(session: Session, model_id: UUID) -> bool:
    """Whether the newest job of a model is a part of a failed one."""
    newest = select(Job.split_of).where(Job.model_id == model_id).order_by(Job.seq.desc()).limit(1)
    return session.scalar(newest) is not None


def split_so_far(session: Session, job: Job) -> tuple[int, bool]:
    """How many jobs were made by splitting the first job of which this is a part, and whether it or any of them passed.

    The first one passes without the requests that it put off.
    """
    ancestors = select(Job.id, Job.split_of).where(Job.id == job.id).cte("ancestors", recursive=True)
    ancestors = ancestors.union(select(Job.id, Job.split_of).where(Job.id == ancestors.c.split_of))
    first = select(ancestors.c.id).where(ancestors.c.split_of.is_(None)).scalar_subquery()
    family = select(Job.id, Job.outcome).where(Job.id == first).cte("family", recursive=True)
    family = family.union(select(Job.id, Job.outcome).where(Job.split_of == family.c.id))
    passed = func.coalesce(func.bool_or(family.c.outcome == Outcome.PASSED), false())
    count, has_passed = session.execute(select(func.count() - 1, passed).select_from(family)).one()
    return count, has_passed


def lost_too_often(session: Session, max_losses: int) -> Job | None:
    """A job that has lost its last allowed worker, locked."""
    is_lost = Job.lease_expires_at < func.now()
    query = select(Job).where(Job.stage.not_in(TERMINAL_STAGES), Job.losses + 1 >= max_losses, is_lost)
    return session.scalar(query.limit(1).with_for_update(skip_locked=True))


def has_active_job(session: Session, model_id: UUID) -> bool:
    """Whether a job of this model has not ended."""
    query = select(Job.id).where(Job.model_id == model_id, Job.stage.not_in(TERMINAL_STAGES)).limit(1)
    return session.scalar(query) is not None


def active_jobs(session: Session, model_id: UUID) -> list[Job]:
    """The jobs of this model that have not ended, locked."""
    query = select(Job).where(Job.model_id == model_id, Job.stage.not_in(TERMINAL_STAGES))
    return list(session.scalars(query.with_for_update()))


def open_among(session: Session, ids: Collection[str]) -> list[Job]:
    """The jobs among these that have not ended, locked."""
    listed = cast(Job.id, Text) == any_(literal(list(ids), ARRAY(Text)))
    return list(session.scalars(select(Job).where(listed, Job.stage.not_in(TERMINAL_STAGES)).with_for_update()))


def unfinished(session: Session, among: list[UUID]) -> set[UUID]:
    """The jobs among these that have not ended."""
    listed = Job.id == any_(literal(among, ARRAY(Uuid)))  # one parameter for any number of ids
    return set(session.scalars(select(Job.id).where(listed, Job.stage.not_in(TERMINAL_STAGES))))


def parents_in_use(session: Session, model_id: UUID) -> set[UUID]:
    """The versions of a model that its unfinished jobs start from."""
    query = select(Job.parent_version_id).where(Job.model_id == model_id, Job.stage.not_in(TERMINAL_STAGES))
    return set(session.scalars(query))


def counts(session: Session, *, ended: bool = True) -> dict[str, int]:
    """How many jobs are in each stage; without `ended`, of those that have not ended."""
    query = select(Job.stage, func.count()).where(true() if ended else text(ACTIVE_JOB)).group_by(Job.stage)
    return {stage: int(count) for stage, count in session.execute(query)}
