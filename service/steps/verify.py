"""verify, the database half: keep the report, hand the job to the control workers."""

from typing import Any
from uuid import UUID

from service.app import Services
from service.db import jobs, requests
from service.domain.states import Outcome, RequestStatus, Stage


def record_report(services: Services, job_id: UUID, fence: int, report: dict[str, Any]) -> None:
    """Keep what the tests said and release the job to be certified.

    Args:
        services: The wired parts.
        job_id: The job.
        fence: The claim's fence.
        report: The child's report: outcome, reason, verdicts (request index -> PASS or FAIL), memorised
            (indices), and the aggregates that the certificate will carry; nothing of a single request's metrics.

    Raises:
        LostLease: The fence moved on.
    """
    with services.db.transaction("report") as session:
        job = jobs.owned(session, job_id, fence)
        members = requests.of_job(session, job_id)
        for index, request in enumerate(members):
            request.verdict = report["verdicts"].get(str(index), request.verdict)
        refs = [members[index].ref for index in report["memorised"]]
        kept = {k: v for k, v in report.items() if k not in ("verdicts", "memorised")}
        job.report = kept | {"memorised": refs, "fence": fence}
        job.outcome, job.reason, job.progress = report["outcome"], report["reason"], 0.95
        job.metrics = {**job.metrics, **{k: report[k] for k in ("after", "utility", "earlier")}}
        jobs.advance(session, job, Stage.CERTIFY, release=True)
        if job.outcome in (Outcome.PASSED, Outcome.FAILED):
            live = [r for r in members if r.status != RequestStatus.REJECTED]
            requests.move(session, live, RequestStatus.VERIFYING)
    services.queue.wake("certify", job_id)
