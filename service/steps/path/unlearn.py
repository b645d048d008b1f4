"""unlearn and merge, on the database side: the compute child's messages as rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from uuid import UUID

from service.audit.canonical import dumps, loads
from service.audit.certificate import certified_parameters
from service.audit.numbers import threshold_ranges
from service.bootstrap import Services
from service.db import job_events, jobs, log_entries, requests, splits
from service.db.tables import DeletionRequest
from service.domain.disclosure import Contributors
from service.domain.json_types import JsonObject
from service.domain.report import BaselineSummary
from service.domain.states import REQUEST_STATUS_AT, RequestStatus, Stage
from service.observability.logging import get_logger
from service.schemas.report import write_report

logger = get_logger(__name__)

PHASE_PROGRESS = {  # phase of the compute child -> its part of the job's progress, 0 to 1
    "measure": (0.0, 0.15),
    "reference": (0.15, 0.2),
    "initialise": (0.15, 0.2),
    "train": (0.2, 0.7),
    "merge": (0.7, 0.75),
    "verify": (0.75, 0.95),
    "quantise": (0.95, 0.98),
}


def store_stage(services: Services, job_id: UUID, fence: int, stage: Stage) -> None:
    """The child begins `stage`. A resumed attempt may repeat earlier stages: the job's stage never goes back.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction(stage) as session:
        job = jobs.owned(session, job_id, fence)
        order = list(Stage)
        if order.index(stage) <= order.index(Stage(job.stage)):
            return
        for following in order[order.index(Stage(job.stage)) + 1 : order.index(stage) + 1]:
            jobs.advance(session, job, following)
        of_job = requests.of_job(session, job_id)
        tested = [request for request in of_job if request.status != RequestStatus.REJECTED]
        requests.move(session, tested, REQUEST_STATUS_AT[stage])


def job_progress(phase: str, fraction: float) -> float:
    """How far a job is, 0 to 1, when so much of a phase is done."""
    low, high = PHASE_PROGRESS[phase]
    return low + (high - low) * fraction


def store_progress(services: Services, job_id: UUID, fence: int, phase: str, fraction: float) -> None:
    """Store how far a phase is, and notify the listeners. This is cheap: it stores no event.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        job.progress = max(job.progress, job_progress(phase, fraction))
        job_events.notify(session, job_id)


def store_thresholds(services: Services, job_id: UUID, fence: int, baseline: BaselineSummary) -> None:
    """Append the thresholds and parameters to the log before training begins.

    An attempt that could not resume, and measured other thresholds, appends its own: it has not trained yet either.

    Args:
        services: The services of this process.
        job_id: The job.
        fence: The claim's fence.
        baseline: The measurements on the parent.

    Raises:
        LostLease: The fence moved on.
    """
    before = services.log.last_signed()  # storage may be slow: not in the transaction
    with services.db.transaction("thresholds") as session:
        job = jobs.owned(session, job_id, fence)
        fixed = {
            "thresholds": hashlib.sha256(dumps(threshold_ranges(baseline.thresholds))).hexdigest(),
            "parameters": hashlib.sha256(dumps(certified_parameters(job.policy))).hexdigest(),
        }
        if job.thresholds_index is not None:
            (entry,) = log_entries.entries(session, job.thresholds_index, 1)
            if fixed.items() <= loads(entry).items():
                return  # a resumed attempt: the log has them
        else:
            jobs.note_progress(job)
        metrics = _baseline_metrics(requests.of_job(session, job_id), baseline)
        job.metrics = {**job.metrics, **metrics}
        job_events.add(session, job_id, "thresholds", metrics)
        job.thresholds_index = log_entries.append(session, "job.thresholds", job=str(job_id), before=before, **fixed)


def _baseline_metrics(of_job: Sequence[DeletionRequest], baseline: BaselineSummary) -> dict[str, object]:
    """A baseline as the API shows it: with the number of memorised requests, and with their contributors."""
    contributors = Contributors.count((of_job[i].api_key_id, baseline.sequences[i]) for i in baseline.memorised)
    values = write_report(baseline) | {"memorised": len(baseline.memorised)} | asdict(contributors)
    del values["thresholds"], values["sequences"]
    return values


def store_epoch(services: Services, job_id: UUID, fence: int, epoch: JsonObject) -> None:
    """Store the end of an epoch. A resumed attempt may repeat epochs: each is stored once.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction("epoch") as session:
        job = jobs.owned(session, job_id, fence)
        if epoch["epoch"] <= job.epoch:
            return
        job.epoch = epoch["epoch"]
        jobs.note_progress(job)
        job.metrics = {**job.metrics, **{name: epoch[name] for name in ("el", "ma", "loss", "perplexity")}}
        job_events.add(session, job_id, "epoch", epoch)


def store_rejected(services: Services, job_id: UUID, fence: int, rejected: dict[int, str]) -> None:
    """Reject requests that cannot be measured (index in the job -> reason); the job goes on without them.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction() as session:
        jobs.owned(session, job_id, fence)
        of_job = requests.of_job(session, job_id)
        new = {index: reason for index, reason in rejected.items() if of_job[index].status != RequestStatus.REJECTED}
        if not new:
            return  # a resumed attempt repeats the message
        for index, reason in new.items():
            requests.move(session, [of_job[index]], RequestStatus.REJECTED, reason=reason, verdict="NOT_TESTED")
        refs = [of_job[index].ref for index in new]
        log_entries.append(session, "requests.rejected", job=str(job_id), refs=refs, at_stage="unlearn")


def store_put_off(services: Services, job_id: UUID, fence: int, indices: list[int]) -> None:
    """Put requests off that are fit alone, and not beside the others of the job (their indices in the job).

    The job's requests are counted anew from then on: its compute child has to begin again.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        of_job = requests.of_job(session, job_id)
        splits.log_split(session, job, splits.put_off(session, job, [of_job[index] for index in indices]))
