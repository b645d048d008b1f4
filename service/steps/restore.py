"""restore: bring a database that was restored from an older backup up to what storage knows.

Storage's ledger lists every version that was published and every request that was purged. Versions that the database
has forgotten are taken up again from their release folders and certificates, so that nothing is published twice;
requests that it remembers too well are purged again. Without a restore there is nothing to do.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from service.app import Services
from service.audit.manifest import FileEntry, manifest
from service.audit.verify import CERTIFICATE, VerificationError, verify
from service.db import audit, jobs, models, requests
from service.db.tables import Certificate, Job, Model, Version
from service.domain.states import Outcome, Stage

log = logging.getLogger(__name__)


@dataclass
class Reconciled:
    """What was done, for the operator.

    Attributes:
        adopted: Versions that were taken up again, as model/number.
        unknown: Versions of the ledger that cannot be: their model is not registered, or the folder does not verify.
    """

    adopted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def reconcile(services: Services) -> Reconciled:
    """Take up every version of the ledger that the database does not know, in the order of their numbers."""
    done = Reconciled()
    with services.db.reading() as session:
        known = models.published(session)
    for (name, number), digest in sorted(services.storage.published().items()):
        if (name, number) not in known:
            adopted = _adopt(services, name, number, digest)
            (done.adopted if adopted else done.unknown).append(f"{name}/{number}")
    return done


def _adopt(services: Services, name: str, number: int, digest: str) -> bool:
    folder = services.storage.release(digest)
    try:
        predicate = verify(folder).statement["predicate"]
    except VerificationError as error:
        log.error("version %s/%d of the ledger does not verify: %s", name, number, error.reason)
        return False
    files = manifest(folder)
    envelope = (folder / CERTIFICATE).read_bytes()
    with services.db.transaction("adopt") as session:
        model = models.by_name(session, name, lock=True)
        parent = models.version(session, model, number - 1) if model else None
        if model is None or parent is None or predicate["lineage"]["version"] != number:
            return False
        _stop_jobs(session, model)
        job = _job_of(session, model, parent, predicate)
        session.add(_version_of(model, parent, job, number, digest, files, predicate))
        certificate = hashlib.sha256(envelope).hexdigest()
        session.add(Certificate(job_id=job.id, envelope=envelope, digest=certificate, overall="PASS"))
        models.set_latest(session, model.id, number)
        requests.adopt(session, model.id, job.id, number, predicate["requests"])
        audit.append(
            session, "version.adopted", job=str(job.id), number=number, manifest=digest, certificate=certificate
        )
    return True


def _stop_jobs(session: Session, model: Model) -> None:
    """A job of before starts from a version that is not the newest: its requests go back in line."""
    for job in jobs.active_of(session, model.id):
        job.reason = "restored"
        jobs.advance(session, job, Stage.QUARANTINED)
        requests.back_in_line(session, job.id)
        audit.append(session, "job.quarantined", job=str(job.id), reason="restored")


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
        metrics={**numbers, "epochs": predicate["training"]["epochs"]},
    )  # fmt: skip


def _floats(values: dict[str, Any]) -> dict[str, Any]:
    """Decimal strings of a certificate as the numbers they were."""
    return {k: float(v) if isinstance(v, str) else v for k, v in values.items()}
