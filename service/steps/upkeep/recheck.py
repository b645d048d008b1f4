"""recheck: on a schedule, all earlier requests of a model are measured in full on its newest version.

A job measures exact EL of some earlier requests only. A recheck measures EL, MA and probes of all that are in custody,
in shards that idle compute workers take. A request that came back is pending again, so that the next job unlearns it.
"""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from service.bootstrap import Services
from service.db import models, rechecks, requests, withdrawals
from service.db.recheck_tables import Recheck
from service.domain.states import RecheckOutcome
from service.observability.logging import get_logger

logger = get_logger(__name__)
CAME_BACK = "came_back"  # the reason of a request that is open again


def begin_rechecks(services: Services) -> None:
    """Begin the rechecks that are due by the models' policies, on their newest versions."""
    with services.db.reading() as session:
        due = rechecks.due_models(session)
    for model_id in due:
        with services.db.transaction() as session:
            model = models.lock(session, model_id)
            if model is None or model_id not in rechecks.due_models(session):
                continue  # somebody else is at it
            version = models.newest_version(session, model)
            recheck = rechecks.begin(session, model, version) if version and version.number else None
        if recheck is not None:
            services.queue.wake("unlearn", recheck.id)
            logger.info("a recheck begins", model=model.name, requests=recheck.requests)


def finish_rechecks(services: Services) -> None:
    """End the rechecks of which every shard has ended. What came back is pending again, and on record."""
    with services.db.transaction() as session:
        rechecks.give_up_lost(session, services.settings.max_losses)
    while (recheck := _finish_one(services)) is not None:
        logger.info("a recheck ended", model=recheck.model.name, outcome=recheck.outcome, requests=recheck.requests)
        if recheck.reopened:
            services.queue.wake("batch", recheck.model_id)
            services.queue.wake("deliver")


def _finish_one(services: Services) -> Recheck | None:
    """End one such recheck; None if there is none. One per transaction: after an append to the log it takes no lock."""
    with services.db.transaction() as session:
        recheck = rechecks.measured(session)
        if recheck is not None:
            _finish(session, recheck)
        return recheck


def _finish(session: Session, recheck: Recheck) -> None:
    """End a recheck: reopen what came back, and append it to the log.

    The next job measures them again on its parent. So nothing is lost if a version that was published meanwhile has
    forgotten them: they are `not_memorised` there.
    """
    refs = [ref for shard in recheck.shards for ref in shard.came_back]
    came_back = requests.lock_in_custody(session, recheck.model_id, refs)
    requests.reopen(session, came_back, CAME_BACK)
    given_up = any(shard.reason for shard in recheck.shards)
    outcome = RecheckOutcome.INCOMPLETE if given_up else RecheckOutcome.PASSED
    recheck.outcome = RecheckOutcome.REOPENED if came_back and not given_up else outcome
    recheck.finished_at, recheck.reopened = datetime.now(UTC), len(came_back)
    session.flush()
    what = {"manifest": recheck.version.digest, "number": recheck.version.number, "requests": recheck.requests}
    what |= {"measured": sum(shard.measured for shard in recheck.shards)}
    withdrawals.log_reopened(session, "version.rechecked", came_back, **what)
