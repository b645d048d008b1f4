"""verify, on the database side: store the report and hand the job to the control workers."""

from dataclasses import asdict, replace
from uuid import UUID

from service.audit.certificate import NOT_PUBLISHED
from service.bootstrap import Services
from service.db import jobs, requests
from service.domain.disclosure import Contributors
from service.domain.report import ChildReport, JobReport
from service.domain.states import Outcome, RequestStatus, Stage
from service.schemas.report import write_report

MOST_NAMED = 100  # requests that a job's metrics name: a compute worker's login may write 64 KiB of them


def store_report(services: Services, job_id: UUID, fence: int, report: ChildReport) -> None:
    """Store the report of the tests, and release the job to be certified.

    Args:
        services: The services of this process.
        job_id: The job.
        fence: The claim's fence.
        report: The child's report.

    Raises:
        LostLease: The fence moved on.
    """
    findings = report.findings
    with services.db.transaction("report") as session:
        job = jobs.owned(session, job_id, fence)
        of_job = requests.of_job(session, job_id)
        for index, verdict in report.verdicts.items():
            of_job[index].verdict = _request_verdict(report, index, verdict)
        memorised = [of_job[index] for index in report.memorised]
        contributors = Contributors.count((of_job[i].api_key_id, report.sequences[i]) for i in report.memorised)
        job.report = JobReport(findings, [request.ref for request in memorised], fence=fence, **asdict(contributors))
        job.outcome, job.reason, job.progress = findings.outcome, findings.reason, max(job.progress, 0.95)
        measured = write_report(report)["findings"]
        assert isinstance(measured, dict)
        tests = {name: measured[name] for name in ("after", "utility", "earlier", "probes", "attacks")}
        if findings.earlier:  # the report names all of them
            tests["earlier"] = asdict(replace(findings.earlier, regressed=findings.earlier.regressed[:MOST_NAMED]))
        job.metrics = {**job.metrics, **tests, **asdict(contributors)}
        jobs.advance(session, job, Stage.CERTIFY, release=True)
        if job.outcome in (Outcome.PASSED, Outcome.FAILED):
            tested = [request for request in of_job if request.status != RequestStatus.REJECTED]
            requests.move(session, tested, RequestStatus.VERIFYING)
    services.queue.wake("certify", job_id)


def _request_verdict(report: ChildReport, index: int, verdict: str) -> str:
    """The verdict of a request. A run that failed for another reason than this request must not read PASS for it.

    A request that was not trained on passes on the parent, which stays.
    """
    unpublished = report.findings.outcome == Outcome.FAILED and index in report.memorised
    return NOT_PUBLISHED if unpublished and verdict == "PASS" else verdict
