"""What most jobs of a large run write: a statement where their workers' steps need hundreds.

It leaves the same stages, versions and fulfilled requests behind, and is refused without the lease as they are. What it
leaves out has no part in scheduling: events, entries in the log, certificates, and what requests are called in between.
"""

from collections.abc import Callable
from functools import partial

from sqlalchemy import text

from bench.simulator.costs import Costs
from bench.simulator.events import Meter
from bench.simulator.steps import Step, phases
from service.bootstrap import Services
from service.db.tables import Job
from service.domain.errors import LostLease
from service.lease import Lease

REACHED = text("""
UPDATE jobs SET stage = :stage, epoch = :epoch, thresholds_index = :thresholds, attempts = 1, losses = 0
WHERE id = :job AND fence = :fence RETURNING id
""")
REPORTED = text("""
UPDATE jobs SET stage = 'certify', outcome = 'passed', progress = 0.95, owner = NULL, lease_expires_at = NULL,
    woken_at = NULL, attempts = 0, losses = 0
WHERE id = :job AND fence = :fence RETURNING id
""")
PUBLISHED = text("""
WITH job AS (
    UPDATE jobs SET stage = 'done', progress = 1, owner = NULL, lease_expires_at = NULL, finished_at = now()
    WHERE id = :job AND fence = :fence RETURNING id, model_id, parent_version_id),
version AS (
    INSERT INTO versions (id, model_id, number, parent_id, job_id, digest, files, metrics)
    SELECT gen_random_uuid(), model_id, (SELECT max(number) + 1 FROM versions WHERE model_id = job.model_id),
        parent_version_id, id, id::text, '[]', '{}' FROM job RETURNING model_id, number),
model AS (UPDATE models SET latest = number FROM version WHERE models.id = version.model_id)
UPDATE deletion_requests SET status = 'completed', version = version.number, finished_at = now()
FROM version WHERE job_id = :job RETURNING deletion_requests.id
""")


def short_steps(
    services: Services, lease: Lease, job: Job, seconds: float, costs: Costs, lives: float, meter: Meter
) -> list[Step]:
    """What a compute worker that lives for so many seconds more writes on a job: its report, or what it reached."""
    passed, reached = 0.0, {"stage": "unlearn", "epoch": job.epoch, "thresholds": job.thresholds_index}
    last, names = 0.0, []
    for wait, name, number in phases(job, seconds, costs):
        passed += wait
        if passed >= lives:
            break
        last = passed
        names.append(name)
        if name == "thresholds":
            reached["thresholds"] = 0
        elif name == "epoch":
            reached["epoch"] = number
        elif name != "progress":
            reached["stage"] = name

    def report() -> None:
        _write(services, REPORTED, lease)
        services.queue.wake("certify", lease.job_id)

    is_reported = reached["stage"] == "report"
    for name in names:
        meter.counted[name] += 1
    write: Callable[[], None] = report if is_reported else partial(_write, services, REACHED, lease, **reached)
    steps: list[Step] = [(last, "short report" if is_reported else "short phase", write)]
    return steps if is_reported else [*steps, (passed - last, "nothing", lambda: None)]


def publish_short(services: Services, lease: Lease, meter: Meter) -> None:
    """Make the version of a job."""
    _write(services, PUBLISHED, lease)
    for name in ("certify", "publish"):
        meter.counted[name] += 1


def _write(services: Services, statement: object, lease: Lease, **values: object) -> None:
    """Run a statement under a lease; a lease that is lost raises `LostLease`."""
    with services.db.transaction() as session:
        given = {"job": lease.job_id, "fence": lease.fence, **values}
        if session.execute(statement, given).first() is None:  # type: ignore[call-overload]
            raise LostLease(f"job {lease.job_id}")
