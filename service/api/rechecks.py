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


def to_recheck_out(recheck: Recheck) -> RecheckOut:
    """The answer for a recheck."""
    return RecheckOut(
        version=recheck.version.number,
        created_at=recheck.created_at,
        finished_at=recheck.finished_at,
        outcome=recheck.outcome,
        requests=recheck.requests,
        measured=sum(shard.measured for shard in recheck.shards),
        reopened=recheck.reopened,
        shards=len(recheck.shards),
        shards_ended=sum(shard.finished_at is not None for shard in recheck.shards),
        reasons=sorted({shard.reason for shard in recheck.shards if shard.reason}),
    )


@router.get("")
def listing(
    name: str, services: ServicesDep, _: VersionReader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[RecheckOut]:
    """Rechecks of a model, newest first: EL, MA and probes of all requests that were unlearned and are in custody.

    They begin by the policy's `recheck_days`. A request that came back is pending again.
    """
    with services.db.reading() as session:
        page = rechecks.listing(session, models.existing(session, name), cursor, limit)
    return Listing(items=[to_recheck_out(recheck) for recheck in page.items], next_cursor=page.next_cursor)
