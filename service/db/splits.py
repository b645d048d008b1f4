"""Splitting a failed batch, so that no request fails for another's sake, as far as the reason lies in a request.

A job that fails is one finding about several requests. Its requests go back to pending in two parts, and each part
becomes a job of its own. A part that fails is split again, until the requests that fail stand alone. So a batch of n
requests makes fewer than 2n jobs. If none of the first `max_split_jobs` jobs has passed, the cause is hardly in the
requests, and the rest fails together. The requests of one API key stay together, so that one submitter's bad requests
cost the others few jobs. Requests that the compute child finds fit alone, and not beside the others, are put off in
the same way, and their job goes on without them. Every split is in the log.
"""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.audit.certificate import NOT_PUBLISHED
from service.db import jobs, log_entries, requests
from service.db.tables import DeletionRequest, Job
from service.domain.states import RequestStatus

FIRST_PUT_OFF = 2  # number of a part; a job that fails is split into the parts 0 and 1
PASSED = ("PASS", NOT_PUBLISHED)
# Reasons that are no request's doing: a part of the batch would end in the same way. `attack_succeeded` is here because
# its test is over all requests, and weaker over a part: the parts could pass as they are.
INSEPARABLE = frozenset(
    {
        "attack_not_run",
        "attack_succeeded",
        "cancelled",
        "candidate_changed",
        "candidate_unlike_parent",
        "child_message",
        "heldout_known",
        "heldout_overlap",
        "model_too_large",
        "no_reference",
        "not_causal",
        "parent_changed",
        "parent_withdrawn",
        "record_refused",
        "restored",
        "thresholds_unreadable",
        "unknown_plugin",
        "unmerged_module",
        "version_in_storage",
    }
)


def fail_or_split(
    session: Session, job: Job, failed: Sequence[DeletionRequest], reason: str | None, *, max_split_jobs: int
) -> list[str]:
    """End the requests of a failed job as failed, or put them back in parts.

    Args:
        session: The transaction.
        job: The job.
        failed: Those of its requests that did not end otherwise.
        reason: Why the job failed.
        max_split_jobs: How many jobs may be made of one by splitting while none of them passes.

    Returns:
        The refs of the requests that are pending again, for `log_split`.
    """
    parts = _parts(failed)
    count, has_passed = jobs.split_so_far(session, job)
    is_hopeless = count + len(parts) > max_split_jobs and not has_passed
    if not parts or reason in INSEPARABLE or is_hopeless:
        requests.move(session, failed, RequestStatus.FAILED, reason=reason)
        return []
    for number, part in enumerate(parts):
        _reopen(session, job, part, number)
    return sorted(request.ref for request in failed)


def put_off(session: Session, job: Job, unfit: Sequence[DeletionRequest]) -> list[str]:
    """Put requests back that are fit alone, and not beside the others of their job, which goes on without them.

    Those of one API key form a part, so that no other key's requests put them off again.

    Returns:
        The refs of the requests that are pending again, for `log_split`.
    """
    for number, key in enumerate(sorted({request.api_key_id for request in unfit}), start=FIRST_PUT_OFF):
        _reopen(session, job, [request for request in unfit if request.api_key_id == key], number)
    return sorted(request.ref for request in unfit)


def _reopen(session: Session, job: Job, part: Sequence[DeletionRequest], number: int) -> None:
    """Make requests of a job pending again, as its part with this number."""
    requests.move(
        session,
        part,
        RequestStatus.PENDING,
        job_id=None,
        verdict=None,
        reason="split",
        split_job_id=job.id,
        split_part=number,
    )


def log_split(session: Session, job: Job, reopened: list[str]) -> None:
    """Log a split, if there was one."""
    if reopened:
        log_entries.append(session, "job.split", job=str(job.id), reopened=reopened)


def _parts(failed: Sequence[DeletionRequest]) -> list[list[DeletionRequest]]:
    """Requests that did not pass their own tests, and the others; if all are of one kind, two halves."""
    passed = [request for request in failed if request.verdict in PASSED]
    others = [request for request in failed if request.verdict not in PASSED]
    if passed and others:
        return [passed, others]
    by_key = sorted(failed, key=lambda request: request.api_key_id)
    middle = len(by_key) // 2
    ends = [n for n in range(1, len(by_key)) if by_key[n - 1].api_key_id != by_key[n].api_key_id]  # of a key's requests
    cut = min(ends, key=lambda n: abs(n - middle), default=middle)
    return [by_key[:cut], by_key[cut:]] if cut else []
