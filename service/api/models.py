"""`/v1/models`: register and list models."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from service.api.deps import Admin, Reader, ServicesDep, VersionReader
from service.api.guard import GuardedRoute
from service.api.paging import Cursor, Limit
from service.db import models
from service.db.tables import Model
from service.domain.families import untried_warning
from service.domain.reference_texts import few_warning, unlike_warning
from service.schemas.base import Listing
from service.schemas.models import DEFAULT_ATTACKS, ModelIn, ModelOut, Policy, Superseded
from service.steps.operator.register import register_model

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=GuardedRoute)


def stored_policy(values: Mapping[str, Any]) -> Policy:
    """A policy of the database. An attack that it does not name is off, as it is in the model's jobs."""
    named = values.get("attacks", DEFAULT_ATTACKS)
    return Policy(**{**values, "attacks": dict.fromkeys(DEFAULT_ATTACKS, "off") | named})


def to_model_out(model: Model) -> ModelOut:
    """The answer for a model."""
    policy, records = stored_policy(model.policy), model.heldout["records"]
    likeness = model.heldout.get("likeness")
    few = few_warning(records, policy.attacks, policy.utility_sequences if policy.loss == "distil" else 0)
    doubts = (few, unlike_warning(likeness), untried_warning(model.family))
    return ModelOut(
        name=model.name,
        latest=model.latest,
        policy=policy,
        policy_version=model.policy_version,
        created_at=model.created_at,
        retain_records=model.retain["records"],
        heldout_records=records,
        neighbour_records={name: texts["records"] for name, texts in sorted(model.neighbours.items())},
        warnings=[doubt for doubt in doubts if doubt],
        family=model.family,
    )


@router.post("", status_code=201)
def create(body: ModelIn, services: ServicesDep, caller: Admin) -> ModelOut:
    """Register a Hugging Face folder on the server, or a hub id, as version 0 of a new model."""
    name = register_model(
        services,
        name=body.name,
        path=body.path,
        retain_path=body.retain_path,
        heldout_path=body.heldout_path,
        policy=body.policy.model_dump(),
        base_path=body.base_path,
        neighbour_paths=body.neighbour_paths,
        api_key_id=caller.id,
    )
    return get(name, services, caller)


@router.get("")
def listing(services: ServicesDep, _: Reader, cursor: Cursor = None, limit: Limit = 50) -> Listing[ModelOut]:
    """Registered models, by name."""
    with services.db.reading() as session:
        page = models.listing(session, cursor, limit)
    return Listing(items=[to_model_out(model) for model in page.items], next_cursor=page.next_cursor)


@router.get("/{name}/supersedes")
def supersedes(
    name: str, services: ServicesDep, _: VersionReader, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 50
) -> Listing[Superseded]:
    """A feed for users of a model: versions and the versions that superseded them.

    `after` is the last version that the user knows. `next_cursor` is the `after` of the next call, if there is more.
    """
    with services.db.reading() as session:
        model = models.existing(session, name)
        newer_versions = models.superseded(session, model, after, limit)
    items = [
        Superseded(
            version=newer.parent.number if newer.parent else 0,
            superseded_by=newer.number,
            at=newer.created_at,
            certificate=digest,
        )
        for newer, digest in newer_versions
    ]
    return Listing(items=items, next_cursor=str(items[-1].superseded_by) if len(items) == limit else None)


@router.get("/{name}")
def get(name: str, services: ServicesDep, _: Reader) -> ModelOut:
    """One model."""
    with services.db.reading() as session:
        model = models.existing(session, name)
    return to_model_out(model)
