"""restore: bring a database that lost its last commits up to the state of storage.

It was restored from an older backup, or it was a standby that lagged behind when it was promoted.

Storage's ledger lists every published version and every purged request. This step adopts versions that the database
has forgotten, from their release folders and certificates, so that no version is published twice. `upkeep.purge`
purges requests again that the backup brought back. If the database was not restored, there is nothing to do.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit.certificate import memorised_count
from service.audit.lost_entries import came_back, joined_jobs
from service.audit.manifest import DELTA_FOLDER, FileEntry, NotPlain, manifest, manifest_digest
from service.audit.predicate import Attack, CertifiedMeans, CertifiedUtility, Limits, Predicate
from service.audit.trust import parse_trust
from service.audit.verification import CERTIFICATE, VerificationError, open_certificate
from service.audit.verify import PROOF, read_file, verify
from service.bootstrap import Services
from service.collected import rebuild, weights_files, write_back
from service.db import jobs, log_entries, log_home, models, restored_requests, withdrawals
from service.db.tables import Certificate, Job, Model, Version
from service.delta import Delta
from service.domain.disclosure import SUPPRESSED
from service.domain.report import AttackFinding, Means, Utility, VersionMetrics
from service.domain.states import RESTORE_STAGE_TRANSITIONS, Outcome, Stage
from service.evidence.log_keeper import LogForked
from service.observability.logging import get_logger
from service.weight_files import ChangedFile, UnreadableWeights

logger = get_logger(__name__)


@dataclass
class Reconciled:
    """The result of a reconciliation, for the operator.

    Attributes:
        adopted: Versions that the database has again, as model/number.
        entries: The number of log entries that were brought back.
        lost: The refs of accepted requests that the database has lost: the log has them.
        forked: The database has other entries than the signed ones: it went on before it was reconciled.
            The service publishes nothing until an operator begins a new log.
        unknown: Versions of the ledger that cannot be adopted: their model is not registered, or the folder does not
            verify.
    """

    adopted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    entries: int = 0
    lost: list[str] = field(default_factory=list)
    forked: bool = False


def reconcile(services: Services) -> Reconciled:
    """Bring back missing entries of the log, then adopt versions that the database lacks, and withdraw again."""
    result, missing = Reconciled(), list[bytes]()
    try:
        size, missing = services.log.missing_entries()
        with services.db.transaction() as session:
            stopped = _stop_joined(session, joined_jobs(missing))  # rows are locked before the log
            restored_requests.reopen_came_back(session, came_back(missing))  # before versions that fulfil them again
            lost = log_home.settle(session, missing, size)
            _log_stopped(session, stopped)
        if lost is not None:
            result.entries, result.lost = len(missing), lost
        for ref in result.lost:
            logger.error("an accepted request is lost", request=ref)
    except LogForked:
        result.forked = True
        logger.error("the log continued before it was reconciled")
    ledger = services.storage.published()  # read before the database, which has every version of the ledger by then
    with services.db.reading() as session:
        known = models.published(session)
    withdrawn = services.storage.withdrawn()
    with services.db.reading() as session:
        for key in models.withdrawn(session):
            withdrawn.pop(key, None)
    for (name, number), digest in sorted(ledger.items()):
        if (name, number) not in known:
            adopted = _adopt(services, name, number, digest, withdrawn)
            (result.adopted if adopted else result.unknown).append(f"{name}/{number}")
    with services.db.transaction() as session:
        restored_requests.reopen_came_back(session, came_back(missing))
    _withdraw(services, withdrawn)
    return result


def _withdraw(services: Services, withdrawn: Mapping[tuple[str, int], str]) -> None:
    """Withdraw versions again; those that the database lacks or has withdrawn are passed over."""
    for (name, number), reason in sorted(withdrawn.items()):
        with services.db.transaction() as session:
            withdrawals.apply_from_ledger(session, name, number, reason)


def _adopt(services: Services, name: str, number: int, digest: str, withdrawn: Mapping[tuple[str, int], str]) -> bool:
    """Verify a version of the ledger and insert it; false if the version does not verify or does not fit.

    A job starts from the newest version that is handed out. So every version between this one and its parent was
    withdrawn before this one was made, and is withdrawn here first: this one may fulfil again what that opened. Every
    other withdrawal waits until all versions are adopted: a later version may keep it from opening anything.
    """
    folder = services.storage.release(digest)
    trust = parse_trust(services.keyring.trust())  # the keys that a folder brings with it prove nothing
    try:
        _rebuild(services, name, digest)
        predicate = verify(folder, trust).statement["predicate"]
        files = manifest(folder)
    except (VerificationError, NotPlain, ChangedFile, UnreadableWeights, OSError) as error:
        reason = error.reason if isinstance(error, VerificationError) else type(error).__name__
        logger.error("a version of the ledger does not verify", model=name, version=number, error=reason)
        return False
    lineage = predicate["lineage"]
    if manifest_digest(files) != digest or (lineage["model"], lineage["version"]) != (name, number):
        logger.error("a version of the ledger is another one", model=name, version=number)
        return False
    between = range(lineage["parent_version"] + 1, number)
    _withdraw(services, {key: reason for key, reason in withdrawn.items() if key[0] == name and key[1] in between})
    return _insert_release(services, folder, number, digest, files, predicate)


def _rebuild(services: Services, name: str, digest: str) -> None:
    """Rebuild the weights of a version that the database does not know yet, if they are missing.

    Raises:
        ChangedFile: The delta, or the version that it changes, is damaged.
        VerificationError: The certificate is not readable.
    """
    storage, folder = services.storage, services.storage.release(digest)
    statement, _ = open_certificate(read_file(folder / CERTIFICATE), parse_trust(services.keyring.trust()))
    listed = weights_files({file["name"]: file["digest"]["sha256"] for file in statement["subject"]})
    missing = {path: sha256 for path, sha256 in listed.items() if not (folder / path).is_file()}
    if not missing or not (folder / DELTA_FOLDER).is_dir():
        return
    with services.db.reading() as session:
        model, base = models.by_name(session, name), Delta(folder / DELTA_FOLDER).base
        before = models.version(session, model, base["version"]) if model and base else None
    if before is None:
        raise ChangedFile(DELTA_FOLDER)
    rebuild(services, before.id)
    write_back(storage, storage.release(before.digest), digest, missing)


def _insert_release(
    services: Services, folder: Path, number: int, digest: str, files: list[FileEntry], predicate: Predicate
) -> bool:
    """Insert a verified release as its model's next version; false if the database lacks the model or the parent."""
    lineage = predicate["lineage"]
    with services.db.transaction() as session:
        model = models.by_name(session, lineage["model"], lock=True)
        parent = models.version(session, model, lineage["parent_version"]) if model else None
        if model is None or parent is None or lineage["parent_manifest"] != parent.digest:
            return False
        stopped = _stop(session, jobs.active_jobs(session, model.id))  # they start from an old version
        job = _insert_job(session, model, parent, predicate)
        submitters = restored_requests.end_as_certified(session, model.id, job.id, number, predicate["requests"])
        metrics = _metrics(predicate, submitters)
        version = Version(model_id=model.id, number=number, parent_id=parent.id, job_id=job.id, metrics=metrics)
        version.digest, version.files = digest, files
        certificate = _certificate(job.id, folder)
        session.add_all([version, certificate])
        session.flush()
        models.set_latest(session, model.id, number)
        _log_stopped(session, stopped)
        log_entries.append(
            session,
            "version.adopted",
            job=str(job.id),
            number=number,
            manifest=digest,
            certificate=certificate.digest,
        )
    return True


def _stop_joined(session: Session, joined: Collection[str]) -> list[UUID]:
    """Stop jobs that requests joined, says the log, and not the database: they would end without these requests."""
    return _stop(session, jobs.open_among(session, joined)) if joined else []


def _stop(session: Session, stopped: Sequence[Job]) -> list[UUID]:
    """Quarantine jobs; their requests are pending again. Returns the jobs' ids."""
    for job in stopped:
        job.reason = "restored"
        jobs.advance(session, job, Stage.QUARANTINED)
        restored_requests.release_from_job(session, job.id)
    session.flush()
    return [job.id for job in stopped]


def _log_stopped(session: Session, stopped: Sequence[UUID]) -> None:
    """Say in the log that these jobs were stopped."""
    for job_id in stopped:
        log_entries.append(session, "job.quarantined", job=str(job_id), reason="restored")


def _insert_job(session: Session, model: Model, parent: Version, predicate: Predicate) -> Job:
    """Insert the job that made a version, from its certificate."""
    job = Job(
        model_id=model.id,
        parent_version_id=parent.id,
        outcome=Outcome.PASSED,
        reason="restored",
        policy=predicate["method"]["parameters"],
        progress=1.0,
        epoch=predicate["training"]["epochs"],
    )
    session.add(job)
    session.flush()
    jobs.advance(session, job, Stage.DONE, table=RESTORE_STAGE_TRANSITIONS)
    return job


def _certificate(job_id: UUID, folder: Path) -> Certificate:
    """The row of the certificate in a release folder."""
    envelope = (folder / CERTIFICATE).read_bytes()
    digest = hashlib.sha256(envelope).hexdigest()
    proof = (folder / PROOF).read_text()
    return Certificate(job_id=job_id, envelope=envelope, digest=digest, overall="PASS", proof=proof)


def _metrics(predicate: Predicate, submitters: int) -> VersionMetrics:
    """A version's metrics from its certificate; values that the certificate suppresses stay unknown."""
    verification = predicate["verification"]
    before, after, utility = verification["before"], verification["after"], verification["utility"]
    limits = _means(verification["limits"])
    assert limits is not None
    assert before is not None
    assert after is not None
    assert utility is not None
    return VersionMetrics(
        limits,
        _means(before),
        _means(after),
        _utility(utility),
        predicate["training"]["epochs"],
        memorised_count(line["reason"] for line in predicate["requests"]),
        submitters,
        attacks=[_attack(attack) for attack in verification["attacks"] if "effect" in attack],
    )


def _utility(values: CertifiedUtility) -> Utility:
    """Perplexities from a certificate."""
    return Utility(
        heldout_perplexity_before=float(values["heldout_perplexity_before"]),
        heldout_perplexity_after=float(values["heldout_perplexity_after"]),
        heldout_ratio=float(values["heldout_ratio"]),
        retain_perplexity_before=float(values["retain_perplexity_before"]),
        retain_perplexity_after=float(values["retain_perplexity_after"]),
        retain_ratio=float(values["retain_ratio"]),
        max_ratio=float(values["max_ratio"]),
        within_budget=values["within_budget"],
        first_heldout_perplexity=_number(values.get("first_heldout_perplexity")),
        total_ratio=_number(values.get("total_ratio")),
        max_total_ratio=_number(values.get("max_total_ratio")),
        within_total_budget=values.get("within_total_budget"),
        max_neighbour_loss=_number(values.get("max_neighbour_loss")),
        within_neighbour_limit=values.get("within_neighbour_limit"),
    )


def _attack(values: Attack) -> AttackFinding:
    """What an attack found, from a certificate, as far as it says."""
    scores = (values.get("figure"), values.get("control"), values.get("auc"))
    figure, control, auc = (_number(None if score == SUPPRESSED else score) for score in scores)
    return AttackFinding(
        values["name"],
        values.get("effect", "report"),
        values["status"],
        values.get("why"),
        passed=values.get("passed"),
        level=_number(values.get("level")),
        figure=figure,
        control=control,
        auc=auc,
        unseen=values.get("unseen"),
        partial=None if figure is None else False,
    )


def _number(value: str | None) -> float | None:
    """A number from a certificate; None where its schema has none."""
    return None if value is None else float(value)


def _means(values: CertifiedMeans | Limits) -> Means | None:
    """Means from a certificate; None if they are suppressed."""
    return None if SUPPRESSED in values.values() else Means(float(values["el"]), float(values["ma"]))
