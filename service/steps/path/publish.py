"""publish: one rename and one transaction, so that a version exists whole and once, or not at all."""

import hashlib
from pathlib import Path
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit.manifest import FileEntry, list_paths, manifest, manifest_digest
from service.audit.verification import CERTIFICATE, VerificationError
from service.audit.verify import PROOF, verify
from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import Certificate, Job, Version
from service.domain.errors import DatabaseOutdated
from service.domain.report import JobReport, VersionMetrics
from service.domain.states import Outcome, RequestStatus, Stage
from service.evidence.keyring import TRUST
from service.failpoints import reach
from service.files import link_or_copy


def publish_version(services: Services, job_id: UUID, fence: int) -> None:
    """Assemble the release, check it as a stranger would, rename it, and make it a version.

    Killed before the rename, the staging folder is garbage; killed before the commit, the folder is garbage
    until the next attempt finds it by its digest; killed after it, the sweep clears the working folder.

    Raises:
        LostLease: The fence moved on; nothing was published under it.
        Outdated: Storage knows a version of this number; the database was restored from before it.
        VerificationError: The release does not pass our own verifier.
    """
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        certificate = models.certificate(session, job_id)
        assert certificate is not None
        assert job.report is not None
        name, number = job.model.name, job.parent_version.number + 1
        computed = job.report.fence
    if services.storage.has_published(name, number):
        raise DatabaseOutdated(f"{name} {number}")
    candidate = services.storage.candidate(job_id, computed)
    if (candidate / TRUST).read_bytes() != services.keyring.trust():  # a key was replaced since it was certified
        _certify_again(services, job_id, fence)
        return
    proof = _proof(services, job_id, fence, certificate)
    staged = services.storage.staging(f"{job_id}/{fence}")
    _assemble(staged, candidate, certificate.envelope, proof)
    try:
        verify(staged)
    except VerificationError:  # the log was begun anew, or its key replaced a moment ago: it is certified again
        _certify_again(services, job_id, fence)
        raise
    files = manifest(staged)
    digest = manifest_digest(files)
    reach("publish.staged")
    folder = services.storage.publish(staged, digest)
    reach("publish.renamed")
    with services.db.transaction("publish") as session:
        job = jobs.owned(session, job_id, fence)
        models.block_collection(session)
        if not folder.is_dir():
            raise FileNotFoundError(folder.name)  # collected as garbage meanwhile: the next attempt makes it again
        _make_version(session, job, number, digest, files)
        log_entries.append(
            session, "version.published", job=str(job_id), number=number, manifest=digest,
            certificate=hashlib.sha256(certificate.envelope).hexdigest(),
        )  # fmt: skip
    services.storage.add_published(name, number, digest)
    services.storage.discard_job(job_id)
    services.queue.wake("deliver")


def _make_version(session: Session, job: Job, number: int, digest: str, files: list[FileEntry]) -> None:
    """The version's row, the newest of its model; the ends of the job and of its requests."""
    assert job.report is not None
    memorised = set(job.report.memorised)
    session.add(Version(
        model_id=job.model_id, number=number, parent_id=job.parent_version_id, job_id=job.id, digest=digest,
        files=list(files), metrics=_metrics(job.report),
    ))  # fmt: skip
    session.flush()
    models.set_latest(session, job.model_id, number)
    for request in requests.of_job(session, job.id):
        if request.status == RequestStatus.REJECTED:
            continue
        if request.ref in memorised:
            requests.move(session, [request], RequestStatus.COMPLETED, reason=None, version=number)
        else:
            requests.move(session, [request], RequestStatus.NOT_MEMORISED, reason="already_passes", version=None)
    jobs.finish(session, job, Outcome.PASSED, None)


def _metrics(report: JobReport) -> VersionMetrics:
    """What the version is listed with."""
    findings = report.findings
    assert findings.limits and findings.utility
    return VersionMetrics(
        findings.limits,
        findings.before,
        findings.after,
        findings.utility,
        findings.epochs,
        len(report.memorised),
        report.submitters,
    )


def _certify_again(services: Services, job_id: UUID, fence: int) -> None:
    """Back to certify, where keys and log are as they are now."""
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        kept = models.certificate(session, job_id)
        assert kept is not None
        kept.proof = None
        jobs.advance(session, job, Stage.CERTIFY)


def _proof(services: Services, job_id: UUID, fence: int, certificate: Certificate) -> str:
    """The proof that the certificate is in the log, made once: a later attempt publishes the same bytes."""
    if certificate.proof is not None:
        return certificate.proof
    assert certificate.log_index is not None
    proof = services.log.prove(certificate.log_index)
    with services.db.transaction("proof") as session:
        jobs.owned(session, job_id, fence)
        kept = models.certificate(session, job_id)
        assert kept is not None
        kept.proof = proof
    return proof


def _assemble(staged: Path, candidate: Path, envelope: bytes, proof: str) -> None:
    """The candidate's files, its certificate and the proof that the log has it, in one folder."""
    for path in list_paths(candidate):
        link_or_copy(candidate / path, staged / path)
        (staged / path).chmod(0o644)
    (staged / CERTIFICATE).write_bytes(envelope)
    (staged / PROOF).write_text(proof)
