"""restore: bring a database that was restored from an older backup up to what storage knows.

Storage's ledger lists every version that was published and every request that was purged. Versions that the database
has forgotten are taken up again from their release folders and certificates, so that nothing is published twice;
requests that it remembers too well are purged again. Without a restore there is nothing to do.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit.certificate import memorised_count
from service.audit.manifest import FileEntry, NotPlain, manifest, manifest_digest
from service.audit.verification import CERTIFICATE, VerificationError
from service.audit.verify import PROOF, verify
from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import Certificate, Job, Model, Version
from service.domain.disclosure import SUPPRESSED
from service.domain.json_types import JsonObject
from service.domain.report import Means, Utility, VersionMetrics
from service.domain.states import Outcome, Stage
from service.evidence.log_keeper import LogForked
from service.observability.logging import get_logger

logger = get_logger(__name__)


@dataclass
class Reconciled:
    """What was done, for the operator.

    Attributes:
        adopted: Versions that were taken up again, as model/number.
        entries: How many entries of the log were brought back.
        forked: The database has entries of its own where others were signed: it went on before it was reconciled.
            Nothing is published until an operator begins a new log.
        unknown: Versions of the ledger that cannot be: their model is not registered, or the folder does not verify.
    """

    adopted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    entries: int = 0
    forked: bool = False


def reconcile(services: Services) -> Reconciled:
    """Bring back entries of the log, then take up versions that the database does not know, by their numbers."""
    done = Reconciled()
    try:
        lost = services.log.missing_entries()
    except LogForked:
        done.forked, lost = True, []
    for entry in lost:
        with services.db.transaction() as session:
            log_entries.append_bytes(session, entry)
    done.entries = len(lost)
    noted = services.storage.published()  # before the database is read: it has all that stood here by then
    with services.db.reading() as session:
        known = models.published(session)
    for (name, number), digest in sorted(noted.items()):
        if (name, number) not in known:
            adopted = _adopt(services, name, number, digest)
            (done.adopted if adopted else done.unknown).append(f"{name}/{number}")
    return done


def _adopt(services: Services, name: str, number: int, digest: str) -> bool:
    folder = services.storage.release(digest)
    try:
        with own_trust_file(services) as trust:  # what a folder says of its own keys proves nothing to us
            predicate = verify(folder, trust).statement["predicate"]
        files = manifest(folder)
    except (VerificationError, NotPlain, OSError) as error:
        reason = error.reason if isinstance(error, VerificationError) else type(error).__name__
        logger.error("a version of the ledger does not verify", model=name, version=number, error=reason)
        return False
    lineage = predicate["lineage"]
    if manifest_digest(files) != digest or (lineage["model"], lineage["version"]) != (name, number):
        logger.error("a version of the ledger is another one", model=name, version=number)
        return False
    return _take_up(services, folder, digest, files, predicate)


def _take_up(services: Services, folder: Path, digest: str, files: list[FileEntry], predicate: JsonObject) -> bool:
    """Insert a verified release as the next version of its model; false if the database lacks the model or parent."""
    lineage, envelope = predicate["lineage"], (folder / CERTIFICATE).read_bytes()
    number = lineage["version"]
    with services.db.transaction() as session:
        model = models.by_name(session, lineage["model"], lock=True)
        parent = models.version(session, model, number - 1) if model else None
        if model is None or parent is None or lineage["parent_manifest"] != parent.digest:
            return False
        stopped = _stop_jobs(session, model)
        job = _insert_job(session, model, parent, predicate)
        submitters = requests.adopt(session, model.id, job.id, number, predicate["requests"])
        session.add(
            Version(
                model_id=model.id,
                number=number,
                parent_id=parent.id,
                job_id=job.id,
                digest=digest,
                files=files,
                metrics=_metrics(predicate, submitters),
            )
        )
        certificate = Certificate(
            job_id=job.id,
            envelope=envelope,
            digest=hashlib.sha256(envelope).hexdigest(),
            overall="PASS",
            proof=(folder / PROOF).read_text(),
        )
        session.add(certificate)
        session.flush()
        models.set_latest(session, model.id, number)
        for job_id in stopped:
            log_entries.append(session, "job.quarantined", job=str(job_id), reason="restored")
        log_entries.append(
            session,
            "version.adopted",
            job=str(job.id),
            number=number,
            manifest=digest,
            certificate=certificate.digest,
        )
    return True


@contextmanager
def own_trust_file(services: Services) -> Iterator[Path]:
    """Our own trust.json, as a file."""
    with tempfile.NamedTemporaryFile(suffix=".json") as handle:
        handle.write(services.keyring.trust())
        handle.flush()
        yield Path(handle.name)


def _stop_jobs(session: Session, model: Model) -> list[UUID]:
    """Stop jobs that start from a version that is not the newest; their requests are pending again. Returns ids."""
    stopped = jobs.active_jobs(session, model.id)
    for job in stopped:
        job.reason = "restored"
        jobs.advance(session, job, Stage.QUARANTINED)
        requests.release_from_job(session, job.id)
    return [job.id for job in stopped]


def _insert_job(session: Session, model: Model, parent: Version, predicate: JsonObject) -> Job:
    """The job that made a version, as its certificate tells it."""
    job = Job(
        model_id=model.id,
        parent_version_id=parent.id,
        stage=Stage.DONE,
        outcome=Outcome.PASSED,
        reason="restored",
        policy=predicate["method"]["parameters"],
        progress=1.0,
        epoch=predicate["training"]["epochs"],
    )
    session.add(job)
    session.flush()
    return job


def _metrics(predicate: JsonObject, submitters: int) -> VersionMetrics:
    """A version's metrics from its certificate; what the certificate suppresses stays unknown."""
    verification = predicate["verification"]
    limits, before, after = (_means(verification[name]) for name in ("limits", "before", "after"))
    assert limits is not None
    utility: JsonObject = {k: float(v) if isinstance(v, str) else v for k, v in verification["utility"].items()}
    return VersionMetrics(
        limits,
        before,
        after,
        Utility(**utility),
        predicate["training"]["epochs"],
        memorised_count(line["reason"] for line in predicate["requests"]),
        submitters,
    )


def _means(values: dict[str, str]) -> Means | None:
    return None if SUPPRESSED in values.values() else Means(float(values["el"]), float(values["ma"]))
