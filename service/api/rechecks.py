"""`/v1/models/{name}/rechecks`: the measurements of all that a model has unlearned so far."""

from fastapi import APIRouter

from service.api.deps import ServicesDep, VersionReader
from service.api.guard import GuardedRoute
from service.api.paging import Cursor, Limit
from service.db import models, rechecks
from service.db.recheck_tables import Recheck
from service.schemas.base import Listing
from service.schemas.models import RecheckOut

router = APIRouter(prefix="/v1/models/{name}/rechecks", tags=["models"], route_class=GuardedRoute)


def to_recheck_out(recheck: Recheck, under_way: tuple[int, int, int]) -> RecheckOut:
    """The answer for a recheck. `under_way` are the shards, those that have ended and the requests of an open one."""
    shards, ended, measured = under_way if recheck.finished_at is None else (0, 0, recheck.measured)
    return RecheckOut(
        version=recheck.version.number,
        created_at=recheck.created_at,
        finished_at=recheck.finished_at,
        outcome=recheck.outcome,
        requests=recheck.requests,
        measured=measured,
        reopened=recheck.reopened,
        shards=shards,
        shards_ended=ended,
        reasons=recheck.reasons,
    )


@router.get("")
def listing(
    name: str, services: ServicesDep, _: VersionReader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[RecheckOut]:
    """Rechecks of a model, newest first: EL, MA and probes of all requests that were unlearned and are in custody.

    They begin by the policy's `recheck_days`. A request that came back is pending again.
    """
    with services.db.reading() as session:
        model = models.existing(session, name)
        page, under_way = rechecks.listing(session, model, cursor, limit), rechecks.under_way(session, model)
    return Listing(items=[to_recheck_out(one, under_way) for one in page.items], next_cursor=page.next_cursor)
