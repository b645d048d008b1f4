"""Leases of jobs: claim a job, keep the lease alive beside the work, hand the job back, quarantine it."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import psycopg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import claims, compute_workers, job_events, jobs, leases, log_entries, requests, splits
from service.db.recheck_tables import RecheckShard
from service.db.tables import Job
from service.domain.errors import LostLease
from service.domain.slot import Slot
from service.domain.states import RequestStatus, Stage
from service.observability.logging import get_logger
from service.progress import steps_heard

logger = get_logger(__name__)
BACKOFF_FACTOR = 4
TOO_LARGE = "model_too_large"  # as the compute child says it


class Lease:
    """A claimed job. `steps` counts progress; `lost` is set when this process must not write any more."""

    def __init__(self, services: Services, job_id: UUID, fence: int, slot: Slot | None = None) -> None:
        """Hold `job_id` under `fence`, for a worker's slot."""
        self.job_id, self.fence, self.steps, self.slot = job_id, fence, 0, slot or Slot()
        self.lost = threading.Event()
        self.services, self._ended = services, threading.Event()

    def step(self) -> None:
        """Something was done for the job.

        Raises:
            LostLease: Nothing more is to be done for it.
        """
        if self.lost.is_set():
            raise LostLease(f"job {self.job_id}")
        self.steps += 1

    def beat(self) -> None:
        """Extend the lease once; set `lost` if the database refuses. A job that makes no step any more has failed."""
        settings = self.services.settings
        with self.services.db.transaction() as session:
            held = jobs.heartbeat(
                session,
                self.job_id,
                self.fence,
                self.steps,
                lease_seconds=settings.lease_seconds,
                stall_seconds=settings.stall_seconds,
            )
        if not held:
            try:
                fail_attempt(self.services, self, "stalled", permanent=False)
            finally:
                self.lost.set()

    def keep(self) -> None:
        """Beat until the work ends; runs in a thread of its own."""
        lease_seconds = self.services.settings.lease_seconds
        held_until = time.monotonic() + lease_seconds
        while not self._ended.wait(lease_seconds / 4) and not self.lost.is_set():
            began = time.monotonic()
            try:
                self.beat()
                held_until = began + lease_seconds
            except (SQLAlchemyError, psycopg.Error) as error:
                logger.warning("heartbeat failed", job=self.job_id, error=type(error).__name__)
            if time.monotonic() > held_until:
                self.lost.set()  # by our own clock another worker may hold the job by now

    def end(self) -> None:
        """Stop beating."""
        self._ended.set()


def new_owner() -> str:
    """A name for the owner of a lease: this process, and a random part for each lease."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:8]}"


def claim_job(
    services: Services, job_id: UUID | None, stages: frozenset[Stage], slot: Slot | None = None
) -> Lease | None:
    """Claim a job, by default the most urgent one; None if it cannot be claimed, or if there is none."""
    with services.db.transaction("claim" if Stage.QUEUED in stages else "claim_control") as session:
        job_id = job_id or claims.most_urgent(session, stages, slot.memory if slot else None)
        seconds = services.settings.lease_seconds
        fence = jobs.claim(session, job_id, new_owner(), stages, lease_seconds=seconds) if job_id else None
    return None if job_id is None or fence is None else Lease(services, job_id, fence, slot)


@contextmanager
def hold_job(
    services: Services, job_id: UUID | None, stages: frozenset[Stage], slot: Slot | None = None
) -> Iterator[Lease | None]:
    """Claim a job, by default the most urgent one, and keep its lease inside the block.

    None if the job cannot be claimed (drop the message), or if there is none.
    """
    lease = claim_job(services, job_id, stages, slot)
    if lease is None:
        yield None
        return
    logger.info("claimed", job=lease.job_id, fence=lease.fence)
    with kept(lease):
        yield lease


@contextmanager
def kept(lease: Lease) -> Iterator[None]:
    """Keep a lease alive inside the block."""
    keeper = threading.Thread(target=lease.keep, name=f"lease-{lease.job_id}", daemon=True)
    keeper.start()
    try:
        with steps_heard(lease.step):
            yield
    finally:
        lease.end()
        keeper.join()


def hand_back(services: Services, lease: Lease, *, delay_seconds: float = 0) -> None:
    """Release the job untouched, because this process stops or the job must wait; this attempt does not count."""
    try:
        with services.db.transaction() as session:
            job = jobs.owned(session, lease.job_id, lease.fence)
            jobs.release(job, delay_seconds=delay_seconds, count=False)
    except LostLease:
        logger.info("lease was lost already", job=lease.job_id)


def fail_attempt(services: Services, lease: Lease, reason: str, *, permanent: bool) -> None:
    """End a failed attempt: back off, or quarantine the job after the last attempt or a permanent error."""
    try:
        with services.db.transaction() as session:
            job = jobs.owned(session, lease.job_id, lease.fence)
            if reason == TOO_LARGE and _leave_to_larger(services, session, job, lease.slot):
                return
            if permanent or job.attempts >= services.settings.max_attempts:
                quarantine_job(session, job, reason, services.settings.max_split_jobs)
            else:
                jobs.release(job, delay_seconds=backoff_seconds(services, job.attempts), count=True)
                job_events.add(session, job.id, "retry", {"reason": reason, "attempts": job.attempts})
    except LostLease:
        logger.info("lease was lost already", job=lease.job_id)


def _leave_to_larger(services: Services, session: Session, job: Job, slot: Slot) -> bool:
    """Release a job that is too large for a slot, if a living worker has a larger one; it does not count."""
    if not outgrow(services, session, job, slot):
        return False
    jobs.release(job, delay_seconds=0, count=False)
    job_events.add(session, job.id, "retry", {"reason": TOO_LARGE, "attempts": job.attempts})
    return True


def outgrow(services: Services, session: Session, row: Job | RecheckShard, slot: Slot) -> bool:
    """Note on a job or shard that a slot is too small for it, if a living worker of its kind has a larger one."""
    largest = compute_workers.largest_slot(session, services.settings.sweep_seconds, slot)
    if slot.memory is None or largest <= slot.memory:
        return False
    row.outgrew = max(row.outgrew or 0, slot.memory)
    return True


def backoff_seconds(services: Services, attempts: int) -> float:
    """The delay after so many failed attempts."""
    return float(services.settings.retry_seconds * BACKOFF_FACTOR ** (attempts - 1))


def lose_attempt(services: Services, lease: Lease, reason: str) -> None:
    """Count an attempt that something outside the job ended as a loss: pause, or quarantine the job after too many."""
    try:
        with services.db.transaction() as session:
            job = jobs.owned(session, lease.job_id, lease.fence)
            job.losses += 1
            if job.losses >= services.settings.max_losses:
                quarantine_job(session, job, reason, services.settings.max_split_jobs)
            else:
                jobs.release(job, delay_seconds=leases.pause_after(job.losses), count=False)
                job_events.add(session, job.id, "retry", {"reason": reason, "attempts": job.attempts})
    except LostLease:
        logger.info("lease was lost already", job=lease.job_id)


def quarantine_job(session: Session, job: Job, reason: str, max_split_jobs: int) -> None:
    """Give a job up with its reason. Its open requests fail or are split, and the model may be batched again."""
    settled = (RequestStatus.REJECTED, RequestStatus.NOT_MEMORISED)
    open_requests = [request for request in requests.of_job(session, job.id) if request.status not in settled]
    for request in open_requests:
        request.verdict = "NOT_TESTED"
    session.flush()
    reopened = splits.fail_or_split(session, job, open_requests, reason, max_split_jobs=max_split_jobs)
    job.reason = reason
    jobs.advance(session, job, Stage.QUARANTINED)
    job_events.add(session, job.id, "done", {"outcome": "quarantined", "reason": reason})
    log_entries.append(session, "job.quarantined", job=str(job.id), reason=reason)
    splits.log_split(session, job, reopened)
