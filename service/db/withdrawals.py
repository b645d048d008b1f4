"""Storing the withdrawal of a version, by an operator's command or from storage's ledger after a restore."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from service.db import jobs, log_entries, models, requests
from service.db.tables import DeletionRequest, Version
from service.domain.states import TERMINAL_REQUESTS, Stage

REOPENED = "version_withdrawn"  # the reason of a request that is open again
REFS_OF_AN_ENTRY = 1000  # an entry of the log has 64 KiB at most
STOPPED = "parent_withdrawn"  # the reason of a job that started from the version


def store(
    session: Session,
    version: Version,
    remaining: Version | None,
    unfulfilled: Sequence[DeletionRequest],
    reason: str,
    api_key_id: UUID | None = None,
) -> None:
    """Withdraw a version in favour of the newest that remains, and open the requests that it alone fulfilled again.

    A job that started from the version is stopped, and its requests go back to pending.
    """
    version.withdrawn_at, version.withdrawn_reason = datetime.now(UTC), reason
    models.set_latest(session, version.model_id, remaining.number if remaining else version.number)
    stopped = [job for job in jobs.active_jobs(session, version.model_id) if job.parent_version_id == version.id]
    for job in stopped:
        job.reason = STOPPED
        jobs.advance(session, job, Stage.QUARANTINED)
        of_job = requests.of_job(session, job.id, lock=True)
        requests.reopen(session, [request for request in of_job if request.status not in TERMINAL_REQUESTS], None)
    requests.reopen(session, unfulfilled, REOPENED)
    for job in stopped:
        log_entries.append(session, "job.quarantined", job=str(job.id), reason=STOPPED)
    who = {"key": str(api_key_id)} if api_key_id else {}  # a restore repeats what is in the log already
    what = {"manifest": version.digest, "number": version.number, "reason": reason}
    log_reopened(session, "version.withdrawn", unfulfilled, **what, **who)


def log_reopened(session: Session, kind: str, reopened: Sequence[DeletionRequest], **members: object) -> None:
    """Append an entry of a kind that reopens requests, and further ones for refs that it has no room for."""
    refs = sorted(request.ref for request in reopened)
    due = {"due": members["due"]} if "due" in members else {}
    log_entries.append(session, kind, reopened=refs[:REFS_OF_AN_ENTRY], **members)
    for start in range(REFS_OF_AN_ENTRY, len(refs), REFS_OF_AN_ENTRY):
        log_entries.append(session, "requests.reopened", refs=refs[start : start + REFS_OF_AN_ENTRY], **due)


def apply_from_ledger(session: Session, name: str, number: int, reason: str) -> None:
    """Withdraw a version again that a restored database hands out; if it does not, there is nothing to do."""
    model = models.by_name(session, name, lock=True)
    version = models.version(session, model, number) if model else None
    if model is None or version is None or version.withdrawn_at is not None:
        return
    remaining = models.newest_version(session, model, without=version)
    unfulfilled = requests.fulfilled_after(session, model.id, remaining.number) if remaining else []
    store(session, version, remaining, [request for request in unfulfilled if request.wrapped_key], reason)
