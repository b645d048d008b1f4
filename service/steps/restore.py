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
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from service.app import Services
from service.audit.certificate import SUPPRESSED, trained_on
from service.audit.manifest import FileEntry, NotPlain, digest_of, manifest
from service.audit.opening import CERTIFICATE, VerificationError
from service.audit.verify import PROOF, verify
from service.db import audit, jobs, models, requests
from service.db.tables import Certificate, Job, Model, Version
from service.domain.states import Outcome, Stage
from service.log import LogForked
from service.logs import logger

log = logger(__name__)


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
        lost = services.log.lost()
    except LogForked:
        done.forked, lost = True, []
    for entry in lost:
        with services.db.transaction() as session:
            audit.append_bytes(session, entry)
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
        with own_trust(services) as trust:  # what a folder says of its own keys proves nothing to us
            predicate = verify(folder, trust).statement["predicate"]
        files = manifest(folder)
    except (VerificationError, NotPlain, OSError) as error:
        reason = error.reason if isinstance(error, VerificationError) else type(error).__name__
        log.error("a version of the ledger does not verify", model=name, version=number, error=reason)
        return False
    lineage = predicate["lineage"]
    if digest_of(files) != digest or (lineage["model"], lineage["version"]) != (name, number):
        log.error("a version of the ledger is another one", model=name, version=number)
        return False
    envelope = (folder / CERTIFICATE).read_bytes()
    with services.db.transaction() as session:
        model = models.by_name(session, name, lock=True)
        parent = models.version(session, model, number - 1) if model else None
        if model is None or parent is None or lineage["parent_manifest"] != parent.digest:
            return False
        stopped = _stop_jobs(session, model)
        job = _job_of(session, model, parent, predicate)
        session.add(_version_of(model, parent, job, number, digest, files, predicate))
        certificate = hashlib.sha256(envelope).hexdigest()
        session.add(
            Certificate(
                job_id=job.id, envelope=envelope, digest=certificate, overall="PASS", proof=(folder / PROOF).read_text()
            )
        )
        models.set_latest(session, model.id, number)
        requests.adopt(session, model.id, job.id, number, predicate["requests"])
        for job_id in stopped:
            audit.append(session, "job.quarantined", job=str(job_id), reason="restored")
        audit.append(
            session, "version.adopted", job=str(job.id), number=number, manifest=digest, certificate=certificate
        )
    return True


@contextmanager
def own_trust(services: Services) -> Iterator[Path]:
    """Our own trust.json, as a file."""
    with tempfile.NamedTemporaryFile(suffix=".json") as handle:
        handle.write(services.keyring.trust())
        handle.flush()
        yield Path(handle.name)


def _stop_jobs(session: Session, model: Model) -> list[UUID]:
    """A job of before starts from a version that is not the newest: its requests go back in line. Returns their ids."""
    stopped = jobs.active_of(session, model.id)
    for job in stopped:
        job.reason = "restored"
        jobs.advance(session, job, Stage.QUARANTINED)
        requests.back_in_line(session, job.id)
    return [job.id for job in stopped]


def _job_of(session: Session, model: Model, parent: Version, predicate: dict[str, Any]) -> Job:
    job = Job(
        model_id=model.id, parent_version_id=parent.id, stage=Stage.DONE, outcome=Outcome.PASSED, reason="restored",
        policy=predicate["method"]["parameters"], progress=1.0, epoch=predicate["training"]["epochs"],
    )  # fmt: skip
    session.add(job)
    session.flush()
    return job


def _version_of(
    model: Model,
    parent: Version,
    job: Job,
    number: int,
    digest: str,
    files: list[FileEntry],
    predicate: dict[str, Any],
) -> Version:
    found = predicate["verification"]
    numbers = {name: _floats(found[name]) for name in ("limits", "before", "after", "utility")}
    return Version(
        model_id=model.id, number=number, parent_id=parent.id, job_id=job.id, digest=digest, files=list(files),
        metrics={
            **numbers, "epochs": predicate["training"]["epochs"],
            "memorised": trained_on(line["reason"] for line in predicate["requests"]),
        },
    )  # fmt: skip


def _floats(values: dict[str, Any]) -> dict[str, Any]:
    """Decimal strings of a certificate as the numbers they were; what it does not tell, it does not tell."""
    return {k: float(v) if isinstance(v, str) and v != SUPPRESSED else v for k, v in values.items()}
