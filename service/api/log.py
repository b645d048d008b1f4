"""`/v1/log`: the transparency log, for whoever wants to hold us to it. It holds ids and digests, nothing personal."""

import base64
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.deps import Auditor, ServicesDep
from service.api.paging import Limit
from service.audit.merkle import consistency_proof, inclusion_proof
from service.bootstrap import Services
from service.db import log_entries
from service.domain.errors import Invalid, NotFound
from service.schemas.base import Listing
from service.schemas.log import LogEntry, LogProof

router = APIRouter(prefix="/v1/log", tags=["transparency log"])
Size = Annotated[int, Query(ge=1, description="entries in the tree, as a checkpoint says")]


@router.get("/checkpoint", response_class=Response)
def checkpoint(services: ServicesDep, _: Auditor) -> Response:
    """The newest signed checkpoint (C2SP signed note). Keep it: a later one must be consistent with it."""
    note = services.log.checkpoint()
    if note is None:
        raise NotFound("Nothing was signed yet.")
    return Response(note, media_type="text/plain; charset=utf-8")


@router.get("/trust", response_class=Response)
def trust(services: ServicesDep, _: Auditor) -> Response:
    """`trust.json` as it is now, with what was retired and revoked. Compare its fingerprint by other means."""
    return Response(services.keyring.trust(), media_type="application/json")


@router.get("/entries")
def entries(
    services: ServicesDep, _: Auditor, start: Annotated[int, Query(ge=0)] = 0, limit: Limit = 200
) -> Listing[LogEntry]:
    """Entries in order, as the bytes that are hashed, in base64; `next_cursor` is the `start` of the next page."""
    with services.db.reading() as session:
        found = log_entries.entries(session, start, limit)
    items = [LogEntry(index=start + i, entry=base64.b64encode(e).decode()) for i, e in enumerate(found)]
    return Listing(items=items, next_cursor=str(start + limit) if len(found) == limit else None)


@router.get("/inclusion")
def inclusion(services: ServicesDep, _: Auditor, index: Annotated[int, Query(ge=0)], size: Size) -> LogProof:
    """The proof that entry `index` is in the tree of the first `size` entries (RFC 9162, 2.1.3)."""
    return _proof(inclusion_proof(_leaves(services, size), index) if index < size else None, "index")


@router.get("/consistency")
def consistency(services: ServicesDep, _: Auditor, older: Size, newer: Size) -> LogProof:
    """The proof that the tree of `older` entries is the beginning of that of `newer` ones (RFC 9162, 2.1.4)."""
    return _proof(consistency_proof(_leaves(services, newer), older) if older <= newer else None, "older")


def _leaves(services: Services, size: int) -> list[bytes]:
    with services.db.reading() as session:
        leaves = log_entries.leaf_hashes(session, size)
    if len(leaves) < size:
        raise Invalid("The log is not as long as that.", field="size")
    return leaves


def _proof(path: list[bytes] | None, field: str) -> LogProof:
    if path is None:
        raise Invalid("It lies outside the tree.", field=field)
    return LogProof(path=[base64.b64encode(h).decode() for h in path])
