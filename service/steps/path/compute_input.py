"""What a compute child reads: the texts of its requests, unsealed, and files, which are checked first."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID

from service.audit.commitments import forget_set_root
from service.audit.manifest import NotPlain, manifest, manifest_digest, sha256_by_path
from service.bootstrap import Services
from service.collected import Rebuilding, is_collected
from service.db import jobs, models, rechecks, requests
from service.db.tables import DeletionRequest, Model, Version
from service.domain.errors import PermanentJobError
from service.domain.job_input import JobInput
from service.domain.reference_texts import ReferenceTexts, overlaps_too_much
from service.domain.states import RequestStatus
from service.observability.logging import get_logger
from service.privacy.records import open_probes, open_records
from service.storage.interface import Storage
from service.weight_files import ChangedFile, check_unchanged

logger = get_logger(__name__)
FIRST_EARLIER = 1_000_000  # a job has fewer requests of its own


def compute_input(services: Services, job_id: UUID, fence: int) -> JobInput:
    """Everything that the compute child needs, with the texts unsealed."""
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        current = requests.of_job(session, job_id, with_records=True)
        earlier = requests.in_custody(session, job.model_id)
        first = models.version(session, job.model, 0)
        assert first is not None
    kept = {n: one for n, one in enumerate(current) if one.wrapped_key or one.status != RequestStatus.REJECTED}
    earlier_numbered = {FIRST_EARLIER + request.seq: request for request in earlier}
    texts, request_ids = _unsealed_texts(services, kept)
    earlier_texts, earlier_request_ids = _unsealed_texts(services, earlier_numbered)
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
        probes=_unsealed_probes(services, kept | earlier_numbered),
        base=str(services.storage.release(job.model.base) / "model") if job.model.base else None,
        run=f"{root.hex()}/{job.parent_version.digest}",
    )


def shard_input(services: Services, shard_id: UUID, fence: int) -> JobInput:
    """Everything that a child needs which measures a shard of a recheck, with the texts unsealed.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction() as session:
        shard = rechecks.owned(session, shard_id, fence)
        version, model = shard.recheck.version, shard.recheck.model
        in_custody = requests.in_custody(session, model.id, *rechecks.of_shard(shard))
    numbered = {request.seq: request for request in in_custody}
    texts, request_ids = _unsealed_texts(services, numbered)
    folder = str(services.storage.release(version.digest) / "model")
    return JobInput(
        work=str(services.storage.work(shard_id, fence)),
        parent=folder,
        first=folder,
        retain=str(services.storage.reference_texts(model.retain["sha256"])),
        heldout=str(services.storage.reference_texts(model.heldout["sha256"])),
        policy=model.policy,
        texts=[],
        request_ids=[],
        earlier_texts=texts,
        earlier_request_ids=request_ids,
        earlier_refs={str(number): request.ref for number, request in numbered.items()},
        probes=_unsealed_probes(services, numbered),
        run=f"recheck/{shard_id}",
        recheck=True,
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
    if is_collected(services.storage, job.parent_version):
        services.queue.wake("rebuild", job.parent_version_id)
        raise Rebuilding
    model = job.model
    texts = [model.retain, model.heldout, *model.neighbours.values()]
    versions = {version.id: version for version in (job.parent_version, first)}
    check_model_files(services, model, [*versions.values()], texts, model.base)


def check_model_files(
    services: Services,
    model: Model,
    versions: Sequence[Version],
    texts: Sequence[ReferenceTexts],
    base: str | None = None,
) -> None:
    """Check versions of a model, reference texts, and the folder of its base.

    Raises:
        PermanentJobError: A file was changed.
    """
    storage = services.storage
    try:
        for version in versions:
            _check_copy(storage, version.digest, partial(_check_version, storage, version))
        for one in texts:
            _check_copy(storage, one["sha256"], partial(_check_texts, storage, one["sha256"]))
        if base:
            _check_copy(storage, base, partial(_check_base, storage, base))
    except ChangedFile as error:
        logger.error("a file in storage was changed", model=model.name, file=str(error))
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


def _unsealed_probes(services: Services, numbered: Mapping[int, DeletionRequest]) -> list[tuple[str, str, int]]:
    """Prompt, secret and number of the request of each probe that the submitters of numbered requests gave."""
    opened = ((number, open_probes(services.wrapper, request)) for number, request in numbered.items())
    return [(probe.prompt, probe.secret, number) for number, probes in opened for probe in probes]
