"""unlearn and merge, the database half: what the compute child is given, and what it says on its way."""

import hashlib
from collections.abc import Sequence
from uuid import UUID

from service.audit.canonical import dumps, loads
from service.audit.certificate import recorded_parameters, threshold_ranges
from service.audit.commitments import forget_set_root
from service.bootstrap import Services
from service.db import jobs, log_entries, requests
from service.db.tables import DeletionRequest
from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from service.domain.report import BaselineSummary
from service.domain.states import REQUEST_STATUS_AT, RequestStatus, Stage
from service.privacy.records import open_records
from service.schemas.report import write_report

PHASE_PROGRESS = {  # where each phase of the compute child lies on the job's 0..1
    "measure": (0.0, 0.15),
    "initialise": (0.15, 0.2), "train": (0.2, 0.7), "merge": (0.7, 0.75), "verify": (0.75, 0.95),
}  # fmt: skip


def compute_input(services: Services, job_id: UUID, fence: int) -> JobInput:
    """Everything the compute child needs, texts opened."""
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        members = requests.of_job(session, job_id, with_records=True)
        earlier = requests.in_custody(session, job.model_id)
    texts, request_ids = _texts(services, members, 0)
    earlier_texts, earlier_request_ids = _texts(services, earlier, len(members))
    root, kept = (forget_set_root([(r.ref, r.commitment) for r in those]) for those in (members, earlier))
    return JobInput(
        work=str(services.storage.work(job_id, fence)),
        parent=str(services.storage.release(job.parent_version.digest) / "model"),
        retain=str(services.storage.reference_texts(job.model.retain["sha256"])),
        heldout=str(services.storage.reference_texts(job.model.heldout["sha256"])),
        policy=job.policy,
        texts=texts,
        request_ids=request_ids,
        earlier_texts=earlier_texts,
        earlier_request_ids=earlier_request_ids,
        earlier_refs={str(len(members) + i): r.ref for i, r in enumerate(earlier)},
        run=f"{root.hex()}/{kept.hex()}/{job.parent_version.digest}",
    )


def _texts(services: Services, members: Sequence[DeletionRequest], first: int) -> tuple[list[str], list[int]]:
    """The records' texts, and for each the number of its request, from `first` on."""
    opened = [(i, text) for i, request in enumerate(members) for _, text in open_records(services.wrapper, request)]
    return [text.decode() for _, text in opened], [first + i for i, _ in opened]


def store_stage(services: Services, job_id: UUID, fence: int, stage: Stage) -> None:
    """The child begins `stage`; a stage that a resumed attempt skips back over is not told again.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction(stage) as session:
        job = jobs.owned(session, job_id, fence)
        order = list(Stage)
        if order.index(stage) <= order.index(Stage(job.stage)):
            return
        for step in order[order.index(Stage(job.stage)) + 1 : order.index(stage) + 1]:
            jobs.advance(session, job, step)
        live = [r for r in requests.of_job(session, job_id) if r.status != RequestStatus.REJECTED]
        requests.move(session, live, REQUEST_STATUS_AT[stage])


def store_progress(services: Services, job_id: UUID, fence: int, phase: str, fraction: float) -> None:
    """How far a phase is; cheap, told to listeners, not kept as an event.

    Raises:
        LostLease: The fence moved on.
    """
    low, high = PHASE_PROGRESS[phase]
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        job.progress = max(job.progress, low + (high - low) * fraction)
        jobs.notify(session, job_id)


def store_thresholds(services: Services, job_id: UUID, fence: int, baseline: BaselineSummary) -> None:
    """Enter what was fixed before training into the log, before training begins.

    An attempt that could not resume and measured something else enters its own: it has not trained either.

    Args:
        services: The wired parts.
        job_id: The job.
        fence: The claim's fence.
        baseline: What was measured on the parent.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction("thresholds") as session:
        job = jobs.owned(session, job_id, fence)
        fixed = {
            "thresholds": hashlib.sha256(dumps(threshold_ranges(baseline.thresholds))).hexdigest(),
            "parameters": hashlib.sha256(dumps(recorded_parameters(job.policy))).hexdigest(),
        }
        if job.thresholds_index is not None:
            (entry,) = log_entries.entries(session, job.thresholds_index, 1)
            if fixed.items() <= loads(entry).items():
                return  # a resumed attempt: they stand
        metrics = _baseline_metrics(requests.of_job(session, job_id), baseline)
        job.metrics = {**job.metrics, **metrics}
        jobs.add_event(session, job_id, "thresholds", metrics)
        job.thresholds_index = log_entries.append(
            session, "job.thresholds", job=str(job_id), before=services.log.last_signed(), **fixed
        )


def _baseline_metrics(members: Sequence[DeletionRequest], baseline: BaselineSummary) -> JsonObject:
    """A baseline as the API shows it: how many requests were memorised, and of how many submitters."""
    memorised = {members[index].api_key_id for index in baseline.memorised}
    values = write_report(baseline) | {"memorised": len(baseline.memorised), "submitters": len(memorised)}
    del values["thresholds"]
    return values


def store_epoch(services: Services, job_id: UUID, fence: int, epoch: JsonObject) -> None:
    """An epoch ended; one that was told already is not told again.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction("epoch") as session:
        job = jobs.owned(session, job_id, fence)
        if epoch["epoch"] <= job.epoch:
            return
        job.epoch = epoch["epoch"]
        job.metrics = {**job.metrics, **{k: epoch[k] for k in ("el", "ma", "loss", "perplexity")}}
        jobs.add_event(session, job_id, "epoch", epoch)


def store_rejected(services: Services, job_id: UUID, fence: int, rejected: dict[int, str]) -> None:
    """Requests that cannot be measured at all leave the job; index -> reason.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction() as session:
        jobs.owned(session, job_id, fence)
        members = requests.of_job(session, job_id)
        told = {i: reason for i, reason in rejected.items() if members[i].status != RequestStatus.REJECTED}
        if not told:
            return  # a resumed attempt found the same
        for index, reason in told.items():
            requests.move(session, [members[index]], RequestStatus.REJECTED, reason=reason, verdict="NOT_TESTED")
        refs = [members[index].ref for index in told]
        log_entries.append(session, "requests.rejected", job=str(job_id), refs=refs, at_stage="unlearn")
