"""publish: one rename and one transaction. A version exists completely and once, or not at all."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from sqlalchemy.orm import Session

from service.audit.manifest import FileEntry, list_paths, manifest, manifest_digest, sha256_by_path
from service.audit.verification import CERTIFICATE, VerificationError
from service.audit.verify import PROOF, verify
from service.bootstrap import Services
from service.collected import is_complete
from service.db import jobs, log_entries, models, requests
from service.db.tables import Certificate, Job, Version
from service.domain.errors import DatabaseOutdated
from service.domain.report import JobReport, VersionMetrics
from service.domain.states import Outcome, RequestStatus, Stage
from service.evidence.keyring import TRUST
from service.failpoints import reach
from service.files import file_sha256, link_or_copy


def publish_version(services: Services, job_id: UUID, fence: int) -> None:
    """Assemble the release, verify it as an outsider would, rename it, and make it a version.

    A kill before the rename leaves the staging folder as garbage. A kill before the commit leaves the release folder
    as garbage until the next attempt finds it by its digest. After a kill behind the commit, the sweep removes the
    working folder.

    Raises:
        LostLease: The fence moved on; nothing was published under it.
        DatabaseOutdated: Storage has a version with this number; the database was restored from an older backup.
        VerificationError: The release does not pass our own verifier.
    """
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        certificate = models.certificate(session, job_id)
        assert certificate is not None
        name, number = job.model.name, models.next_number(session, job.model_id)
        parent = job.parent_version
    if services.storage.has_published(name, number):
        raise DatabaseOutdated(f"{name} {number}")
    certified = services.storage.certified(job_id, certificate.digest)
    if not _is_current(services, certified):
        _return_to_certify(services, job_id, fence)
        return
    proof = _inclusion_proof(services, job_id, fence, certificate)
    staged = services.storage.staging(f"{job_id}/{fence}")
    _assemble(staged, certified, certificate.envelope, proof)
    try:
        verify(staged)
    except VerificationError:  # a new log began, or the log's key was replaced a moment ago
        _return_to_certify(services, job_id, fence)
        raise
    files = manifest(staged)
    _share_files(staged, files, services.storage.release(parent.digest), parent.files)
    digest = manifest_digest(files)
    reach("publish.staged")
    services.storage.publish(staged, digest)
    reach("publish.renamed")
    with services.db.transaction("publish") as session:
        job = jobs.owned(session, job_id, fence)
        models.block_collection(session)
        if not is_complete(services.storage, digest, files):
            raise FileNotFoundError(digest)  # the collector removed it meanwhile; the next attempt makes it again
        _insert_version(session, job, number, digest, files)
        what = {"job": str(job_id), "number": number, "manifest": digest, "certificate": certificate.digest}
        log_entries.append(session, "version.published", **what)
    services.storage.add_published(name, number, digest)
    services.storage.discard_job(job_id)
    services.queue.wake("deliver")


def _insert_version(session: Session, job: Job, number: int, digest: str, files: list[FileEntry]) -> None:
    """Insert the version as the newest of its model, and end the job and its requests."""
    assert job.report is not None
    memorised = set(job.report.memorised)
    version = Version(model_id=job.model_id, number=number, parent_id=job.parent_version_id, job_id=job.id)
    version.digest, version.files, version.metrics = digest, files, _metrics(job.report)
    session.add(version)
    session.flush()
    models.set_latest(session, job.model_id, number)
    tested = [request for request in requests.of_job(session, job.id) if request.status != RequestStatus.REJECTED]
    forgotten = [request for request in tested if request.ref in memorised]
    unseen = [request for request in tested if request.ref not in memorised]
    requests.move(session, forgotten, RequestStatus.COMPLETED, reason=None, version=number)
    requests.move(session, unseen, RequestStatus.NOT_MEMORISED, reason="already_passes", version=None)
    jobs.finish(session, job, Outcome.PASSED, None)


def _metrics(report: JobReport) -> VersionMetrics:
    """The metrics of a version, from its job's report."""
    findings = report.findings
    assert findings.limits is not None
    assert findings.utility is not None
    return VersionMetrics(
        findings.limits,
        findings.before,
        findings.after,
        findings.utility,
        findings.epochs,
        len(report.memorised),
        report.submitters,
        report.largest_share,
        findings.attacks,
    )


def _return_to_certify(services: Services, job_id: UUID, fence: int) -> None:
    """Move the job back to certify: its certificate and proof must be of the present keys and log."""
    with services.db.transaction() as session:
        job = jobs.owned(session, job_id, fence)
        certificate = models.certificate(session, job_id)
        assert certificate is not None
        certificate.proof = None
        jobs.advance(session, job, Stage.CERTIFY)


def _inclusion_proof(services: Services, job_id: UUID, fence: int, certificate: Certificate) -> str:
    """The proof that the log has the certificate. It is made once: a later attempt publishes the same bytes."""
    if certificate.proof is not None:
        return certificate.proof
    assert certificate.log_index is not None
    proof = services.log.prove(certificate.log_index)
    with services.db.transaction("proof") as session:
        jobs.owned(session, job_id, fence)
        stored = models.certificate(session, job_id)
        assert stored is not None
        stored.proof = proof
    return proof


def _is_current(services: Services, certified: Path) -> bool:
    """Whether the certified copy still exists, and no key was replaced after certification."""
    try:
        return (certified / TRUST).read_bytes() == services.keyring.trust()
    except FileNotFoundError:  # the collector removed it, because the job waited for long
        return False


def _share_files(staged: Path, files: Sequence[FileEntry], parent: Path, parent_files: Sequence[FileEntry]) -> None:
    """Put the parent's own files in the place of equal ones, so that the disk has them once: shards, the tokenizer.

    Released files never change. Those that cannot be linked stay copies.
    """
    digests = sha256_by_path(parent_files)
    for entry in files:
        original, shared = parent / entry["path"], staged.with_name(f"{staged.name}.shared")
        if digests.get(entry["path"]) != entry["sha256"]:
            continue
        with suppress(OSError):
            if file_sha256(original) == entry["sha256"]:
                shared.unlink(missing_ok=True)
                os.link(original, shared)
                shared.replace(staged / entry["path"])


def _assemble(staged: Path, certified: Path, envelope: bytes, proof: str) -> None:
    """Put control's copy of the candidate, the certificate and its proof into one folder."""
    for path in list_paths(certified):
        link_or_copy(certified / path, staged / path)
        (staged / path).chmod(0o644)
    (staged / CERTIFICATE).write_bytes(envelope)
    (staged / PROOF).write_text(proof)
