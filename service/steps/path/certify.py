"""certify: sign the record of a job, passed or failed, before anything is published."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from service.audit.canonical import loads
from service.audit.card import model_card
from service.audit.certificate import RequestLine, statement
from service.audit.checkpoint import Proof
from service.audit.commitments import forget_set_root
from service.audit.dsse import IN_TOTO
from service.audit.manifest import FileEntry, manifest
from service.audit.verification import VerificationError, load_trust
from service.audit.verify import MODEL_SIGNATURE, check_model_signature
from service.bootstrap import Services
from service.db import jobs, log_entries, models, requests
from service.db.tables import Certificate, DeletionRequest, Job
from service.domain.errors import DatabaseOutdated, PermanentJobError
from service.domain.json_types import JsonObject
from service.domain.states import Outcome, RequestStatus, Stage
from service.evidence.keyring import TRUST, Keyring
from service.files import link_or_copy

CARD = "model/README.md"


def certify_job(services: Services, job_id: UUID, fence: int) -> None:
    """Issue the certificate; a failed or needless run ends here, a passed one goes on to be published.

    Raises:
        Hopeless: The files that wait to be published are not those that the tests ran on.
        LostLease: The fence moved on.
        Outdated: Storage knows a version of this number; the database was restored from before it.
        WordingRefused: The record would say something it may not.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        members = requests.of_job(session, job_id)
        tested = [r for r in members if r.status != RequestStatus.REJECTED]
        parent = models.certificate(session, job.parent_version.job_id)
        lineage = {
            "model": job.model.name,
            "version": job.parent_version.number + 1 if job.outcome == Outcome.PASSED else None,
            "parent_version": job.parent_version.number,
            "parent_manifest": job.parent_version.digest,
            "parent_certificate": parent.digest if parent else None,
            "supersedes": job.parent_version.number if job.outcome == Outcome.PASSED else None,
        }
    if not tested:
        _end_without_record(services, job_id, fence)
        return
    passed = job.outcome == Outcome.PASSED
    if passed and services.storage.has_published(job.model.name, job.parent_version.number + 1):
        raise DatabaseOutdated(f"{job.model.name} {job.parent_version.number + 1}")
    with services.keyring.keys_held():
        files = released_files(services, job, fence) if job.outcome != Outcome.NOT_MEMORISED else _parent_files(job)
        payload = _payload(services, job, tested, lineage, files)
        envelope = services.keyring.sign("certificate", payload, IN_TOTO)
    with services.db.transaction("certify") as session:
        job = jobs.owned(session, job_id, fence)
        overall = "FAIL" if job.outcome == Outcome.FAILED else "PASS"
        digest = hashlib.sha256(envelope).hexdigest()
        # A later attempt may have run on other bytes: its record replaces one that was never published.
        kept = session.merge(Certificate(job_id=job_id, envelope=envelope, digest=digest, overall=overall, proof=None))
        if passed:
            jobs.advance(session, job, Stage.PUBLISH)
            waiting = [r for r in _live(session, job_id) if r.status != RequestStatus.PUBLISHING]
            requests.move(session, waiting, RequestStatus.PUBLISHING)
        else:
            _end(session, job)
        kept.log_index = log_entries.append(
            session, "job.certified", job=str(job_id), certificate=digest, overall=overall
        )
    if not passed:
        services.storage.discard_job(job_id)
        services.queue.wake("deliver")


def _end_without_record(services: Services, job_id: UUID, fence: int) -> None:
    """Every request was rejected: nothing was tested, so there is nothing to certify."""
    with services.db.transaction() as session:
        _end(session, jobs.owned(session, job_id, fence))
    services.storage.discard_job(job_id)
    services.queue.wake("deliver")


def _live(session: Session, job_id: UUID) -> list[DeletionRequest]:
    return [r for r in requests.of_job(session, job_id) if r.status != RequestStatus.REJECTED]


def _end(session: Session, job: Job) -> None:
    """Terminal states of a job that publishes nothing."""
    assert job.report is not None
    memorised = set(job.report.memorised)
    for request in _live(session, job.id):
        if request.ref in memorised:
            requests.move(session, [request], RequestStatus.FAILED, reason=job.reason)
        else:
            requests.move(session, [request], RequestStatus.NOT_MEMORISED, reason="already_passes")
    assert job.outcome is not None
    jobs.finish(session, job, Outcome(job.outcome), job.reason)


def released_files(services: Services, job: Job, fence: int) -> list[FileEntry]:
    """Manifest of what the release folder will hold beside the certificate: model, its card and signature, trust.json.

    Only what passed is signed with the release key.
    """
    assert job.report is not None
    findings = job.report.findings
    candidate = services.storage.candidate(job.id, job.report.fence)
    card = model_card(job.model.name, job.parent_version.number, findings, job.report.submitters or 0)
    for name, content in ((TRUST, services.keyring.trust()), (CARD, card.encode())):
        fresh = candidate.with_name(f"{candidate.name}-{fence}.new")
        fresh.write_bytes(content)
        fresh.replace(candidate / name)  # never written into: a published folder may share the file
    listed = {f["path"]: f["sha256"] for f in manifest(candidate)}
    ours = (TRUST, CARD, MODEL_SIGNATURE)
    if {path: digest for path, digest in listed.items() if path not in ours} != findings.files:
        raise PermanentJobError("candidate_changed")
    if job.outcome == Outcome.PASSED:
        _sign_model(services.keyring, candidate, listed, fence)
    return manifest(candidate)


def _sign_model(keyring: Keyring, candidate: Path, listed: dict[str, str], fence: int) -> None:
    """Put `model.sig` there by today's key, unless an earlier attempt did.

    Signatures are random and this one is certified, so nothing is written over a good one: a zombie may still be at it.
    """
    target = candidate / MODEL_SIGNATURE
    try:
        signer = check_model_signature(target, listed, load_trust(candidate / TRUST))
        if signer.retired_at is None:
            return
    except VerificationError:
        pass
    target.unlink(missing_ok=True)
    fresh = candidate.with_name(f"{candidate.name}-{fence}.sig")
    keyring.sign_model(candidate / "model", fresh)
    link_or_copy(fresh, target)
    fresh.unlink()


def _parent_files(job: Job) -> list[FileEntry]:
    """The model files of the version that already passes."""
    files: list[FileEntry] = [f for f in job.parent_version.files if f["path"].startswith("model/")]
    return files


def _log(services: Services, job: Job) -> JsonObject:
    """The log before the run, and the proof that it had the thresholds before this record."""
    assert job.thresholds_index is not None
    proof = services.log.prove(job.thresholds_index)
    before = loads(Proof.loads(proof).entry)["before"]
    return {"origin": services.log.origin, "before": before, "thresholds": proof}


def _payload(
    services: Services,
    job: Job,
    tested: list[DeletionRequest],
    lineage: JsonObject,
    files: list[FileEntry],
) -> bytes:
    assert job.report is not None
    memorised = set(job.report.memorised)
    reason = job.reason if job.outcome == Outcome.FAILED else None
    lines = [
        RequestLine(
            r.ref,
            r.commitment,
            r.verdict or "NOT_TESTED",
            reason if r.ref in memorised else "not_memorised",
            r.supplements,
        )
        for r in tested
    ]
    return statement(
        certificate_id=uuid4().hex,
        issuer=services.settings.issuer,
        issued_at=datetime.now(UTC),
        lineage=lineage,
        log=_log(services, job),
        files=files,
        published=job.outcome == Outcome.PASSED,
        forget_root=forget_set_root([(r.ref, r.commitment) for r in tested]),
        requests=lines,
        records=sum(r.records_count for r in tested),
        submitters=job.report.submitters or 0,
        reference_texts=[{"role": "retain", **job.model.retain}, {"role": "heldout", **job.model.heldout}],
        parameters=job.policy,
        findings=job.report.findings,
        overall="FAIL" if job.outcome == Outcome.FAILED else "PASS",
    )
