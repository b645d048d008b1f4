"""unlearn and merge, on the database side: the compute child's input, and its messages as rows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from uuid import UUID

from service.audit.canonical import dumps, loads
from service.audit.certificate import certified_parameters
from service.audit.commitments import forget_set_root
from service.audit.manifest import NotPlain, manifest, manifest_digest, sha256_by_path
from service.audit.numbers import threshold_ranges
from service.bootstrap import Services
from service.collected import Rebuilding, is_collected
from service.db import job_events, jobs, log_entries, models, requests, splits
from service.db.tables import DeletionRequest, Version
from service.domain.disclosure import Contributors
from service.domain.errors import PermanentJobError
from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from service.domain.reference_texts import overlaps_too_much
from service.domain.report import BaselineSummary
from service.domain.states import REQUEST_STATUS_AT, RequestStatus, Stage
from service.observability.logging import get_logger
from service.privacy.records import open_probes, open_records
from service.schemas.report import write_report
from service.storage.interface import Storage
from service.weight_files import ChangedFile, check_unchanged

logger = get_logger(__name__)

FIRST_EARLIER = 1_000_000  # a job has fewer requests of its own
PHASE_PROGRESS = {  # phase of the compute child -> its part of the job's progress, 0 to 1
    "measure": (0.0, 0.15),
    "reference": (0.15, 0.2),
    "initialise": (0.15, 0.2),
    "train": (0.2, 0.7),
    "merge": (0.7, 0.75),
    "verify": (0.75, 0.95),
}


def compute_input(services: Services, job_id: UUID, fence: int) -> JobInput:
    """Everything that the compute child needs, with the texts unsealed."""
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        current = requests.of_job(session, job_id, with_records=True)
        earlier = requests.in_custody(session, job.model_id)
        first = models.version(session, job.model, 0)
        assert first is not None
    numbered, earlier_numbered = dict(enumerate(current)), {FIRST_EARLIER + request.seq: request for request in earlier}
    texts, request_ids = _unsealed_texts(services, numbered)
    earlier_texts, earlier_request_ids = _unsealed_texts(services, earlier_numbered)
    of_probes = [
        (probe.prompt, probe.secret, number)
        for number, request in (numbered | earlier_numbered).items()
        for probe in open_probes(services.wrapper, request)
    ]
    root = forget_set_root([(request.ref, request.commitment) for request in current])
    return JobInput(
        work=str(services.storage.work(job_id, fence)),
        parent=str(services.storage.release(job.parent_version.digest) / "model"),
        first=str(services.storage.release(first.digest) / "model"),
        retain=str(services.storage.reference_texts(job.model.retain["sha256"])),
        heldout=str(services.storage.reference_texts(job.model.heldout["sha256"])),
        neighbours=[
            str(services.storage.reference_texts(texts["sha256"])) for _, texts in sorted(job.model.neighbours.items())
        ],
        policy=job.policy,
        texts=texts,
        request_ids=request_ids,
        earlier_texts=earlier_texts,
        earlier_request_ids=earlier_request_ids,
        earlier_refs={str(number): request.ref for number, request in earlier_numbered.items()},
        probes=of_probes,
        base=str(services.storage.release(job.model.base) / "model") if job.model.base else None,
        run=f"{root.hex()}/{job.parent_version.digest}",
    )


def check_reference_texts(services: Services, job_id: UUID) -> None:
    """Give a job up if too many held-out texts of its model are also retain texts. `batch` has counted them.

    Raises:
        PermanentJobError: The thresholds would come from text that training works on.
    """
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
    heldout = job.model.heldout
    if "overlap" in heldout and overlaps_too_much(heldout["overlap"], heldout["records"]):
        raise PermanentJobError("heldout_overlap")


def check_files(services: Services, job_id: UUID) -> None:
    """Give a job up if a file that it is about to use is not the one that was published or registered.

    Raises:
        Rebuilding: The parent's weights were removed: the database was restored from an older backup.
        PermanentJobError: A file of the parent, of version 0, of the base or of the reference texts was changed.
    """
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        first = models.version(session, job.model, 0)
        assert first is not None
    storage, model = services.storage, job.model
    if is_collected(storage, job.parent_version):
        services.queue.wake("rebuild", job.parent_version_id)
        raise Rebuilding
    try:
        for version in {job.parent_version_id: job.parent_version, first.id: first}.values():
            _check_copy(storage, version.digest, partial(_check_version, storage, version))
        for texts in (model.retain, model.heldout, *model.neighbours.values()):
            _check_copy(storage, texts["sha256"], partial(_check_texts, storage, texts["sha256"]))
        if model.base:
            _check_copy(storage, model.base, partial(_check_base, storage, model.base))
    except ChangedFile as error:
        logger.error("a file in storage was changed", job=job_id, model=model.name, file=str(error))
        raise PermanentJobError("parent_changed") from error


def _check_copy(storage: Storage, digest: str, check: Callable[[], None]) -> None:
    """Check files that this machine has of a digest. If they are copies and damaged, they are fetched again.

    Raises:
        ChangedFile: One is missing, or is not the one that was published or registered.
    """
    try:
        check()
    except ChangedFile:
        if not storage.drop_copy(digest):
            raise
        check()


def _check_version(storage: Storage, version: Version) -> None:
    check_unchanged(storage.release(version.digest), sha256_by_path(version.files))


def _check_texts(storage: Storage, digest: str) -> None:
    check_unchanged(storage.reference_texts(digest).parent, {digest: digest})


def _check_base(storage: Storage, digest: str) -> None:
    if _digest_on_disk(storage.release(digest)) != digest:
        raise ChangedFile("the base")


def _digest_on_disk(folder: Path) -> str:
    """The digest of a folder's manifest; empty if it cannot be read."""
    try:
        return manifest_digest(manifest(folder))
    except (OSError, NotPlain):
        return ""


def _unsealed_texts(services: Services, numbered: Mapping[int, DeletionRequest]) -> tuple[list[str], list[int]]:
    """The texts of numbered requests, and for each text the number of its request."""
    opened = [
        (number, text) for number, request in numbered.items() for _, text in open_records(services.wrapper, request)
    ]
    return [text.decode() for _, text in opened], [number for number, _ in opened]


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
