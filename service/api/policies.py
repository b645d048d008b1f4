"""`/v1/models/{name}/policy` and `/policies`: change a model's policy, and list all that it had."""

from fastapi import APIRouter

from service.api.deps import Admin, Reader, ServicesDep
from service.api.guard import GuardedRoute
from service.api.models import get, stored_policy
from service.api.paging import Cursor, Limit
from service.db import models
from service.schemas.base import Listing
from service.schemas.models import ModelOut, PolicyIn, PolicyOut
from service.steps.operator.policy import set_policy

router = APIRouter(prefix="/v1/models/{name}", tags=["models"], route_class=GuardedRoute)


@router.put("/policy")
def replace(name: str, body: PolicyIn, services: ServicesDep, caller: Admin) -> ModelOut:
    """Replace a model's policy. Jobs that exist keep theirs. A field that is left out gets its default.

    `policy_version` is the version that the caller has seen: if another one is in force, the answer is 409 and nothing
    changes. The transparency log gets an entry with the digest of the new policy.
    """
    set_policy(services, name, body.policy.model_dump(), body.policy_version, caller.id)
    return get(name, services, caller)


@router.get("/policies")
def listing(
    name: str, services: ServicesDep, _: Reader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[PolicyOut]:
    """All policies that a model had, newest first, with the API key that set each."""
    with services.db.reading() as session:
        model = models.existing(session, name)
        page = models.policies(session, model, cursor, limit)
    items = [
        PolicyOut(policy_version=row.number, policy=stored_policy(row.policy), at=row.at, api_key_id=row.api_key_id)
        for row in page.items
    ]
    return Listing(items=items, next_cursor=page.next_cursor)
