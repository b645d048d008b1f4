"""Celery tasks. Each takes an id, asks PostgreSQL whether there is work, and drops the message if there is none."""

import threading
from collections.abc import Callable
from functools import partial
from uuid import UUID

from service.bootstrap import Services
from service.collected import collect_weights, rebuild
from service.db import jobs, models
from service.db.log_home import is_refusal, is_settled
from service.db.session import DATABASE_AWAY
from service.db.tables import Job
from service.domain.errors import DatabaseOutdated, LostLease, PermanentJobError, StorageAway
from service.domain.slot import Slot
from service.domain.states import COMPUTE_STAGES, CONTROL_STAGES, Stage
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import LogBusy, LogDamaged
from service.lease import Lease, fail_attempt, hand_back, hold_job, lose_attempt
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.shard_lease import hold_shard
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.subjects.index import index_corpus
from service.steps.subjects.resolve import resolve_request
from service.steps.upkeep.deliver import deliver_alerts, deliver_callbacks
from service.steps.upkeep.forget import forget_old
from service.steps.upkeep.purge import purge_due, purge_restored
from service.steps.upkeep.recheck import begin_rechecks, finish_rechecks
from service.steps.upkeep.scrub import scrub_next
from service.steps.upkeep.shred import rewrap_restored, shred_purged
from service.steps.upkeep.sweep import collect_garbage, run_parts, wake_lost_work
from worker.app import app, get_services, slots, stopping
from worker.steps.run import run_job
from worker.steps.shard import run_shard

logger = get_logger(__name__)
scrubbing, rebuilding = threading.Lock(), threading.Lock()
forked = threading.Event()  # the log contradicts what was signed: `collect` alone looks again
CONTROL_STEPS = {Stage.CERTIFY: certify_job, Stage.PUBLISH: publish_version}


@app.task(name="batch")  # type: ignore[untyped-decorator]
def batch(model_id: str) -> None:
    """Make a job of a model's pending requests if their window closes now."""
    batch_requests(get_services(), UUID(model_id))


@app.task(name="unlearn")  # type: ignore[untyped-decorator]
def unlearn(job_id: str = "") -> None:  # older processes say which
    """There may be work, such as this job: compute until nothing is left, unless every slot does so already."""
    compute(get_services())


def compute(services: Services) -> None:
    """Take jobs by their deadlines, and run unlearn, merge and verify of each in a child process.

    It returns at once if as many jobs run as this worker has slots: whoever runs them looks for the next one.
    """
    with slots.free() as slot:
        while slot is not None and not stopping.is_set():
            had_job = work_under_lease(services, None, COMPUTE_STAGES, run_job, slot)
            if not had_job and not measure_shard(services, slot):
                return


def measure_shard(services: Services, slot: Slot | None = None) -> bool:
    """Measure a shard of a recheck, which waits until no job does; false if there is none."""
    with hold_shard(services, slot) as lease:
        if lease is None:
            return False
        try:
            run_shard(services, lease)
        except LostLease:
            logger.warning("lease lost", job=lease.job_id)
        except DATABASE_AWAY as error:
            logger.warning("the database is away", job=lease.job_id, error=type(error).__name__)
            lease.lose("database_away")
        except StorageAway as error:
            logger.warning("handed back", job=lease.job_id, error=str(error))
            lease.hand_back(delay_seconds=services.settings.retry_seconds)
        except PermanentJobError as error:
            lease.fail(error.reason, permanent=True)
        except Exception as error:
            logger.exception("an attempt failed", job=lease.job_id)
            lease.fail(type(error).__name__)
        return True


@app.task(name="certify")  # type: ignore[untyped-decorator]
def certify(job_id: str) -> None:
    """Claim a job that waits for certification or publication, and take it to its end."""
    work_under_lease(get_services(), UUID(job_id), CONTROL_STAGES, certify_and_publish)


def work_under_lease(
    services: Services,
    job_id: UUID | None,
    stages: frozenset[Stage],
    work: Callable[[Services, Lease], None],
    slot: Slot | None = None,
) -> bool:
    """Do `work` on a job, by default the most urgent, if it can be claimed; on any error, release or quarantine it.

    A compute worker does it in a slot, and takes no job that is too large for it.

    Returns:
        Whether there was a job to be claimed.
    """
    with hold_job(services, job_id, stages, slot) as lease:
        if lease is None:
            return False
        job_id = lease.job_id
        try:
            try:
                work(services, lease)
            except DatabaseOutdated:
                if not reconcile(services).adopted:
                    raise PermanentJobError("version_in_storage") from None
        except LostLease:
            logger.warning("lease lost", job=job_id)
        except (LogBusy, LogDamaged, LogForked, StorageAway) as error:  # no fault of the job
            logger.warning("handed back", job=job_id, error=str(error))
            hand_back(services, lease, delay_seconds=services.settings.retry_seconds)
        except DATABASE_AWAY as error:  # it is no fault of the job
            logger.warning("the database is away", job=job_id, error=type(error).__name__)
            if is_refusal(error):  # the log waits for `reconcile`
                hand_back(services, lease, delay_seconds=services.settings.retry_seconds)
            else:
                lose_attempt(services, lease, "database_away")
        except PermanentJobError as error:
            fail_attempt(services, lease, error.reason, permanent=True)
        except Exception as error:
            logger.exception("an attempt failed", job=job_id)
            fail_attempt(services, lease, type(error).__name__, permanent=False)
        return True


def certify_and_publish(services: Services, lease: Lease) -> None:
    """Certify and publish a job, as far as that is not done yet; between the two, hand it back if the worker stops."""
    while (job := _read_job(services, lease.job_id)).stage in CONTROL_STEPS:
        if stopping.is_set():
            hand_back(services, lease)
            return
        with span(job.stage, job.traceparent, job=str(job.id), fence=lease.fence):
            CONTROL_STEPS[Stage(job.stage)](services, lease.job_id, lease.fence)
        lease.step()
    services.queue.wake("batch", job.model_id)  # requests that have waited for this job to end


def _read_job(services: Services, job_id: UUID) -> Job:
    """The job's present row."""
    with services.db.reading() as session:
        job = jobs.by_id(session, job_id)
        assert job is not None
        return job


@app.task(name="deliver")  # type: ignore[untyped-decorator]
def deliver() -> None:
    """Send the callbacks and alerts that are due, in threads of their own: a slow receiver holds up no other task."""
    for step in (deliver_callbacks, deliver_alerts):
        threading.Thread(target=_deliver, args=[step], name=step.__name__).start()


def _deliver(step: Callable[..., int]) -> None:
    """Run a step that sends; what it raises is logged, and the sweep wakes it again."""
    try:
        step(get_services(), go_on=lambda: not stopping.is_set())
    except Exception as error:  # nobody waits for this thread; a message could quote a value
        logger.error("delivering failed", error=type(error).__name__)


@app.task(name="index")  # type: ignore[untyped-decorator]
def index(corpus_id: str) -> None:
    """Index a corpus from its cursor."""
    index_corpus(get_services(), UUID(corpus_id), go_on=lambda: not stopping.is_set())


@app.task(name="resolve")  # type: ignore[untyped-decorator]
def resolve(request_id: str) -> None:
    """Find the records that a request is about."""
    resolve_request(get_services(), UUID(request_id), go_on=lambda: not stopping.is_set())


@app.task(name="sweep")  # type: ignore[untyped-decorator]
def sweep() -> None:
    """Bring a promoted or restored database up to date, and wake lost work."""
    run_parts(get_services(), _settle, wake_lost_work, finish_rechecks)


def _settle(services: Services) -> None:
    """Reconcile a database that is not the home of the log; a forked one waits for an operator."""
    with services.db.reading() as session:
        settled = is_settled(session)
    if settled or forked.is_set():
        return
    if reconcile(services).forked:
        forked.set()
        return
    run_parts(services, rewrap_restored, purge_restored)


@app.task(name="collect")  # type: ignore[untyped-decorator]
def collect() -> None:
    """Bring a restored database up to date, purge texts whose window has passed, remove garbage, sign the log.

    It also renews `trust.json` in time.
    """
    services = get_services()
    renew_trust(services)
    if not reconcile(services).forked:
        forked.clear()
    run_parts(services, _purge, begin_rechecks, _forget, collect_garbage, _collect_weights, _sign_log)


@app.task(name="scrub")  # type: ignore[untyped-decorator]
def scrub() -> None:
    """Hash a release again that was not hashed for long; one at a time, so that other tasks have threads."""
    if scrubbing.acquire(blocking=False):
        try:
            scrub_next(get_services(), go_on=lambda: not stopping.is_set())
        finally:
            scrubbing.release()


@app.task(name="rebuild")  # type: ignore[untyped-decorator]
def rebuild_weights(version_id: str) -> None:
    """Rebuild the weights of an old version; one version at a time, so that other tasks have threads."""
    if rebuilding.acquire(blocking=False):
        try:
            rebuild(get_services(), UUID(version_id), lambda: not stopping.is_set())
        finally:
            rebuilding.release()


def _collect_weights(services: Services) -> None:
    """Remove the weights of old versions where a policy says so, and rebuild what is missing elsewhere."""
    with services.db.reading() as session:
        model_ids = models.all_ids(session)
    collect = [
        partial(collect_weights, model_id=model_id, go_on=lambda: not stopping.is_set()) for model_id in model_ids
    ]
    run_parts(services, *collect)


def _forget(services: Services) -> None:
    """Delete old rows until this worker stops."""
    forget_old(services, go_on=lambda: not stopping.is_set())


def _purge(services: Services) -> None:
    """Purge what a restored database brought back and what is due, and destroy the keys."""
    for step in (rewrap_restored, purge_restored, purge_due, shred_purged):
        step(services)


def _sign_log(services: Services) -> None:
    """Sign the log, so that the newest checkpoint is not older than the last collection, and have it cosigned."""
    services.witnesses.cosign(services.log.sign(), go_on=lambda: not stopping.is_set())


def renew_trust(services: Services) -> None:
    """Renew `trust.json`, if this worker may write to the keys; if it may not, tell the operator to do it."""
    try:
        services.keyring.renew()
    except OSError as error:
        logger.error("trust.json is not renewed: run `unlearnd keys init`", error=error.strerror)
