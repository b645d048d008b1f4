"""`/v1/log`: the transparency log, for auditors. It holds ids and digests, no personal data."""

import base64
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.deps import Auditor, LogReader, ServicesDep
from service.api.guard import GuardedRoute
from service.api.paging import Limit
from service.audit.merkle import consistency_proof, inclusion_proof
from service.audit.tiles import TiledTree
from service.bootstrap import Services
from service.db import log_entries
from service.domain.errors import Invalid, NotFound
from service.schemas.base import Listing
from service.schemas.log import LogEntry, LogProof, WitnessedCheckpoint

router = APIRouter(prefix="/v1/log", tags=["transparency log"], route_class=GuardedRoute)
Size = Annotated[int, Query(ge=1, description="number of entries in the tree, from a checkpoint")]


@router.get("/checkpoint", response_class=Response)
def checkpoint(services: ServicesDep, _: Auditor) -> Response:
    """The newest signed checkpoint (C2SP signed note). Keep it: later checkpoints must be consistent with it."""
    note = services.log.checkpoint()
    if note is None:
        raise NotFound("No checkpoint was signed yet.")
    return Response(note, media_type="text/plain; charset=utf-8")


@router.get("/witnessed")
def witnessed(services: ServicesDep, _: Auditor) -> Listing[WitnessedCheckpoint]:
    """The newest checkpoint that each witness has cosigned (C2SP tlog-cosignature); it may be an older one."""
    notes = sorted(services.witnesses.notes().items())
    return Listing(items=[WitnessedCheckpoint(witness=name, checkpoint=note) for name, note in notes], next_cursor=None)


@router.get("/trust", response_class=Response)
def trust(services: ServicesDep, _: Auditor) -> Response:
    """The current `trust.json`, with retired and revoked keys. Compare its fingerprint over another channel."""
    return Response(services.keyring.trust(), media_type="application/json")


@router.get("/entries")
def entries(
    services: ServicesDep, _: LogReader, start: Annotated[int, Query(ge=0)] = 0, limit: Limit = 200
) -> Listing[LogEntry]:
    """Entries in order: the hashed bytes in base64. `next_cursor` is the `start` of the next page.

    They need the scope `audit` or `read`, because whoever knows when a person asked could find the person's request.
    """
    with services.db.reading() as session:
        page = log_entries.entries(session, start, limit)
    items = [LogEntry(index=start + i, entry=base64.b64encode(entry).decode()) for i, entry in enumerate(page)]
    return Listing(items=items, next_cursor=str(start + limit) if len(page) == limit else None)


@router.get("/inclusion")
def inclusion(services: ServicesDep, _: LogReader, index: Annotated[int, Query(ge=0)], size: Size) -> LogProof:
    """The proof that entry `index` is in the tree of the first `size` entries (RFC 9162, 2.1.3).

    It needs what `entries` needs: a proof has the hashes of other entries, and whoever guesses an entry can check it.
    """
    tree = _tree(services, size)
    return _to_log_proof(inclusion_proof(tree.subtree, size, index) if index < size else None, "index")


@router.get("/consistency")
def consistency(services: ServicesDep, _: LogReader, older: Size, newer: Size) -> LogProof:
    """The proof that the tree of `newer` entries begins with the tree of `older` entries (RFC 9162, 2.1.4).

    It needs what `entries` needs.
    """
    tree = _tree(services, newer)
    return _to_log_proof(consistency_proof(tree.subtree, newer, older) if older <= newer else None, "older")


@router.get("/tile/{path:path}", response_class=Response)
def tile(services: ServicesDep, _: LogReader, path: str) -> Response:
    """A tile of the log (C2SP tlog-tiles): `<L>/<N>`, or `entries/<N>`, with `.p/<W>` behind it if it holds W only.

    It needs what `entries` needs.
    """
    content = services.log.tile(path)
    if content is None:
        raise NotFound("The last checkpoint covers no such tile.")
    return Response(content, media_type="application/octet-stream")


def _tree(services: Services, size: int) -> TiledTree:
    """The tree that the last signed checkpoint covers, which has the first `size` entries.

    The last signed checkpoint covers them. Otherwise the moment at which the log grows would tell that somebody asked.
    """
    tree = services.log.tree()
    if size > tree.size:
        raise Invalid("The last checkpoint covers fewer entries.", field="size")
    return tree


def _to_log_proof(path: list[bytes] | None, field: str) -> LogProof:
    """The answer for a proof. `field` is the parameter that is wrong if there is no proof."""
    if path is None:
        raise Invalid("This is outside the tree.", field=field)
    return LogProof(path=[base64.b64encode(digest).decode() for digest in path])
