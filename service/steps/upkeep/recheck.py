"""recheck: on a schedule, all earlier requests of a model are measured in full on its newest version.

A job measures exact EL of some earlier requests only. A recheck measures EL, MA and probes of all that are in custody,
in shards that idle compute workers take. A request that came back is pending again, so that the next job unlearns it.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import compute_workers, models, rechecks, requests, withdrawals
from service.db.recheck_tables import Recheck
from service.domain.states import RecheckOutcome
from service.observability.logging import get_logger

logger = get_logger(__name__)
CAME_BACK = "came_back"  # the reason of a request that is open again
DUE_DAYS = 30  # that the service has to unlearn it again


def begin_rechecks(services: Services) -> None:
    """Begin the rechecks that are due by the models' policies, on their newest versions."""
    with services.db.reading() as session:
        due = rechecks.due_models(session)
    for model_id in due:
        with services.db.transaction() as session:
            model = models.lock(session, model_id)
            if model is None or not rechecks.due_models(session, model_id):
                continue  # somebody else is at it
            version = models.newest_version(session, model)
            recheck = rechecks.begin(session, model, version) if version and version.number else None
        if recheck is not None:
            services.queue.wake("unlearn", recheck.id)
            logger.info("a recheck begins", model=model.name, requests=recheck.requests)


def finish_rechecks(services: Services) -> None:
    """End the rechecks of which every shard has ended. What came back is pending again, and on record."""
    settings = services.settings
    with services.db.transaction() as session:
        rechecks.give_up_lost(session, settings.max_losses)
        largest = compute_workers.largest_slot(session, settings.sweep_seconds)
        rechecks.give_up_outgrown(session, largest, quiet_seconds=settings.lease_seconds)
    while (recheck := _finish_one(services)) is not None:
        logger.info("a recheck ended", model=recheck.model.name, outcome=recheck.outcome, requests=recheck.requests)
        if recheck.reopened:
            services.queue.wake("batch", recheck.model_id)
            services.queue.wake("deliver")


def _finish_one(services: Services) -> Recheck | None:
    """End one such recheck; None if there is none. One per transaction: after an append to the log it takes no lock."""
    with services.db.transaction() as session:
        recheck = rechecks.ended(session)
        if recheck is not None:
            _finish(session, recheck)
        return recheck


def _finish(session: Session, recheck: Recheck) -> None:
    """End a recheck: reopen what came back, with a new deadline, and append it to the log.

    The next job measures them again on its parent. If a version that was published meanwhile has forgotten them, they
    are `not_memorised` there, and stay in custody.
    """
    came_back = [request for shard in recheck.shards for request in rechecks.lock_came_back(session, shard)]
    due = datetime.now(UTC) + timedelta(days=DUE_DAYS)
    for request in came_back:
        requests.reopen_came_back(session, request, CAME_BACK, due)
    recheck.reasons = sorted({shard.reason for shard in recheck.shards if shard.reason})
    outcome = RecheckOutcome.REOPENED if came_back else RecheckOutcome.PASSED
    recheck.outcome = RecheckOutcome.INCOMPLETE if recheck.reasons else outcome
    recheck.measured = sum(shard.measured for shard in recheck.shards)
    recheck.finished_at, recheck.reopened = datetime.now(UTC), len(came_back)
    rechecks.forget_shards(session, recheck)
    session.flush()
    what = {"manifest": recheck.version.digest, "number": recheck.version.number, "requests": recheck.requests}
    what |= {"measured": recheck.measured, "due": due.date().isoformat()}
    withdrawals.log_reopened(session, "version.rechecked", came_back, **what)
