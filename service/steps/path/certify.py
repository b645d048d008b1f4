"""certify: sign the certificate of a job, passed or failed, before anything is published."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from service.audit.canonical import NotCanonical, loads
from service.audit.certificate import RequestLine, statement
from service.audit.checkpoint import Proof
from service.audit.commitments import forget_set_root
from service.audit.dsse import IN_TOTO
from service.audit.manifest import MODEL_FOLDER, FileEntry
from service.audit.policy import policy_problems
from service.audit.predicate import CertifiedTexts, Lineage, LogReference
from service.bootstrap import Services
from service.candidate import released_files
from service.db import jobs, log_entries, models, requests, splits
from service.db.tables import Certificate, DeletionRequest, Job
from service.domain.errors import DatabaseOutdated, PermanentJobError
from service.domain.reference_texts import ReferenceTexts
from service.domain.states import Outcome, RequestStatus, Stage


def certify_job(services: Services, job_id: UUID, fence: int) -> None:
    """Issue a job's certificate. A passed job goes on to be published; any other job ends here.

    Raises:
        PermanentJobError: The candidate's files are not the files that the tests measured, or not the parent's with
            the given change; or the parent's are not those that were published.
        LostLease: The fence moved on.
        DatabaseOutdated: Storage has a version with this number; the database was restored from an older backup.
        WordingRefused: The certificate would make a claim that it must not make.
    """
    with services.db.transaction() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        tested = _tested_requests(session, job_id)
        if job.report is not None and job.report.submitters is None:
            _count_submitters(jobs.owned(session, job_id, fence), tested)
        lineage, number = _lineage(session, job), models.next_number(session, job.model_id)
    if not tested:
        _end_uncertified(services, job_id, fence)
        return
    passed = job.outcome == Outcome.PASSED
    if passed and services.storage.has_published(job.model.name, number):
        raise DatabaseOutdated(f"{job.model.name} {number}")
    with _staging(services, job_id, fence) as staged:
        with services.keyring.keys_held():
            unchanged = job.outcome == Outcome.NOT_MEMORISED
            files = _parent_files(job) if unchanged else released_files(services, job, staged)
            payload = _statement(services, job, tested, lineage, files)
            if passed and any(policy_problems(loads(payload)["predicate"])):
                raise PermanentJobError("record_refused")  # the verifier of everybody else would refuse it
            envelope = services.keyring.sign("certificate", payload, IN_TOTO)
        if passed:
            services.storage.keep_certified(job_id, hashlib.sha256(envelope).hexdigest(), staged)
    _store_certificate(services, job_id, fence, envelope)
    if not passed:
        services.storage.discard_job(job_id)
        services.queue.wake("batch", job.model_id)  # the parts of a batch that was split
        services.queue.wake("deliver")


@contextmanager
def _staging(services: Services, job_id: UUID, fence: int) -> Iterator[Path]:
    """A place for a copy of the candidate. A copy that was not renamed goes: each is as large as the model."""
    folder = services.storage.staging(f"{job_id}/{fence}")
    try:
        yield folder / "copy"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _count_submitters(job: Job, tested: Sequence[DeletionRequest]) -> None:
    """Complete a report that an early release made. Nobody counted its sequences, so its means are not shown."""
    assert job.report is not None
    submitters = {request.api_key_id for request in tested if request.ref in job.report.memorised}
    job.report = replace(job.report, submitters=len(submitters))


def _tested_requests(session: Session, job_id: UUID) -> list[DeletionRequest]:
    """The requests of a job that were not rejected."""
    return [request for request in requests.of_job(session, job_id) if request.status != RequestStatus.REJECTED]


def _lineage(session: Session, job: Job) -> Lineage:
    """The certificate's lineage: the version and its parent."""
    passed, parent = job.outcome == Outcome.PASSED, job.parent_version
    certificate = models.certificate(session, parent.job_id)
    return {
        "model": job.model.name,
        "version": models.next_number(session, job.model_id) if passed else None,
        "parent_version": parent.number,
        "parent_manifest": parent.digest,
        "parent_certificate": certificate.digest if certificate else None,
        "supersedes": parent.number if passed else None,
    }


def _store_certificate(services: Services, job_id: UUID, fence: int, envelope: bytes) -> None:
    """Store a certificate with its entry in the log, and move the job and its requests on."""
    with services.db.transaction("certify") as session:
        job = jobs.owned(session, job_id, fence)
        overall = "FAIL" if job.outcome == Outcome.FAILED else "PASS"
        digest = hashlib.sha256(envelope).hexdigest()
        # A later attempt may have made other files: its certificate replaces one that was never published.
        stored = session.merge(
            Certificate(job_id=job_id, envelope=envelope, digest=digest, overall=overall, proof=None)
        )
        if job.outcome == Outcome.PASSED:
            jobs.advance(session, job, Stage.PUBLISH)
            tested = _tested_requests(session, job_id)
            waiting = [request for request in tested if request.status != RequestStatus.PUBLISHING]
            requests.move(session, waiting, RequestStatus.PUBLISHING)
            reopened = []
        else:
            reopened = _end_unpublished(session, job, services.settings.max_split_jobs)
        # The log's reader must not take a request for dealt with because its failed run has a certificate.
        failed = {"failed": sorted(job.report.memorised)} if overall == "FAIL" and job.report else {}
        stored.log_index = log_entries.append(
            session, "job.certified", job=str(job_id), certificate=digest, overall=overall, **failed
        )
        splits.log_split(session, job, reopened)


def _end_uncertified(services: Services, job_id: UUID, fence: int) -> None:
    """End a job whose requests were all rejected: nothing was tested, so there is nothing to certify."""
    with services.db.transaction() as session:
        _end_unpublished(session, jobs.owned(session, job_id, fence), services.settings.max_split_jobs)
    services.storage.discard_job(job_id)
    services.queue.wake("deliver")


def _end_unpublished(session: Session, job: Job, max_split_jobs: int) -> list[str]:
    """End a job that publishes nothing, and its requests; returns the refs of those that are pending again."""
    assert job.report is not None
    memorised = set(job.report.memorised)
    tested = _tested_requests(session, job.id)
    failed = [request for request in tested if request.ref in memorised]
    unseen = [request for request in tested if request.ref not in memorised]
    requests.move(session, unseen, RequestStatus.NOT_MEMORISED, reason="already_passes")
    reopened = splits.fail_or_split(session, job, failed, job.reason, max_split_jobs=max_split_jobs)
    assert job.outcome is not None
    jobs.finish(session, job, Outcome(job.outcome), job.reason)
    return reopened


def _parent_files(job: Job) -> list[FileEntry]:
    """The model files of the parent version, which already passes."""
    return [entry for entry in job.parent_version.files if entry["path"].startswith(MODEL_FOLDER)]


def _log_evidence(services: Services, job: Job) -> LogReference:
    """The log's state before the run, and the proof that the log has the job's thresholds.

    Raises:
        PermanentJobError: The entry is not readable, or of another job.
    """
    assert job.thresholds_index is not None
    proof = services.log.prove(job.thresholds_index)
    try:
        entry = loads(Proof.loads(proof).entry)
        if (entry["kind"], entry["job"]) != ("job.thresholds", str(job.id)):
            raise PermanentJobError("thresholds_unreadable")
        return {"origin": services.log.origin, "before": entry["before"], "thresholds": proof}
    except (NotCanonical, KeyError, TypeError) as error:
        raise PermanentJobError("thresholds_unreadable") from error


def _statement(
    services: Services, job: Job, tested: list[DeletionRequest], lineage: Lineage, files: list[FileEntry]
) -> bytes:
    """The statement that a job's certificate signs."""
    assert job.report is not None
    memorised = set(job.report.memorised)
    reason = job.reason if job.outcome == Outcome.FAILED else None
    lines = [
        RequestLine(
            request.ref,
            request.commitment,
            request.verdict or "NOT_TESTED",
            reason if request.ref in memorised or request.verdict == "FAIL" else "not_memorised",
            request.supplements,
        )
        for request in tested
    ]
    return statement(
        certificate_id=uuid4().hex,
        issuer=services.settings.issuer,
        issued_at=datetime.now(UTC),
        lineage=lineage,
        log=_log_evidence(services, job),
        files=files,
        published=job.outcome == Outcome.PASSED,
        forget_root=forget_set_root([(request.ref, request.commitment) for request in tested]),
        requests=lines,
        # What a search found is left out: a submitter, who may be alone in the job, learns only whether that is 0.
        records=sum(request.records_count - (request.results_count or 0) for request in tested),
        contributors=job.report.contributors,
        reference_texts=[
            _certified_texts("retain", job.model.retain),
            _certified_texts("heldout", job.model.heldout),
            *(_certified_texts(f"neighbours/{name}", texts) for name, texts in sorted(job.model.neighbours.items())),
        ],
        heldout_overlap=job.model.heldout.get("overlap"),
        parameters=job.policy,
        findings=job.report.findings,
        overall="FAIL" if job.outcome == Outcome.FAILED else "PASS",
        base=job.model.base,
    )


def _certified_texts(role: str, texts: ReferenceTexts) -> CertifiedTexts:
    """Reference texts as the certificate lists them."""
    return {"role": role, "sha256": texts["sha256"], "records": texts["records"]}
