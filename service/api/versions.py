"""`/v1/models/{name}/versions`: published versions, their files and certificates."""

import base64
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from service.api.deps import Downloader, Parts, VersionReader
from service.api.paging import Cursor, Limit
from service.app import Services
from service.audit.verify import CERTIFICATE
from service.db import models as queries
from service.db.tables import Version
from service.domain.errors import NotFound
from service.schemas import FileOut, Listing, VersionOut

router = APIRouter(prefix="/v1/models/{name}/versions", tags=["versions"])
Number = Annotated[str, Path(pattern=r"^(latest|\d{1,9})$", description="an integer or `latest`")]


def shown(version: Version, name: str) -> VersionOut:
    """A version as it is answered."""
    return VersionOut(
        model=name, version=version.number, parent=version.parent.number if version.parent else None,
        job_id=version.job_id, created_at=version.created_at, digest=version.digest, metrics=version.metrics,
        files=[FileOut(**f) for f in version.files],
    )  # fmt: skip


@router.get("")
def listing(name: str, parts: Parts, _: VersionReader, cursor: Cursor = None, limit: Limit = 50) -> Listing[VersionOut]:
    """Versions, newest first."""
    with parts.db.reading() as session:
        model = queries.by_name(session, name)
        if model is None:
            raise NotFound("There is no model of that name.")
        page = queries.versions(session, model, cursor, limit)
        items = [shown(v, name) for v in page.items]
    return Listing(items=items, next_cursor=page.next_cursor)


@router.get("/{number}")
def get(name: str, number: Number, parts: Parts, _: VersionReader) -> VersionOut:
    """One version with every file of its release folder."""
    return find(parts, name, number)


def find(parts: Services, name: str, number: str) -> VersionOut:
    """A version by number or `latest`.

    Raises:
        NotFound: No such model or version.
    """
    with parts.db.reading() as session:
        model = queries.by_name(session, name)
        if model is None:
            raise NotFound("There is no model of that name.")
        version = queries.version(session, model, model.latest if number == "latest" else int(number))
        if version is None:
            raise NotFound("The model has no such version.")
        return shown(version, name)


@router.head("/{number}/files/{path:path}", include_in_schema=False)
@router.get("/{number}/files/{path:path}", response_class=FileResponse)
def file(name: str, number: Number, path: str, request: Request, parts: Parts, _: Downloader) -> Response:
    """One file: whole or a `Range`; `ETag` is its sha256, `Repr-Digest` the same after RFC 9530."""
    return _file(parts, find(parts, name, number), path, request)


@router.get("/{number}/certificate", response_class=FileResponse)
def certificate(name: str, number: Number, request: Request, parts: Parts, _: VersionReader) -> Response:
    """The certificate: a DSSE envelope. Version 0 is the base as it was registered and has none."""
    return _file(parts, find(parts, name, number), CERTIFICATE, request)


def _file(parts: Services, version: VersionOut, path: str, request: Request) -> Response:
    """The file if the version lists it: the list, not the path, decides what can be read."""
    entry = next((f for f in version.files if f.path == path), None)
    if entry is None:
        raise NotFound(f"Version {version.version} has no such file.")
    digest = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
    headers = {
        "ETag": f'"{entry.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }
    if headers["ETag"] in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    kind = "application/json" if path.endswith(".json") else "application/octet-stream"
    return FileResponse(parts.storage.release(version.digest) / entry.path, headers=headers, media_type=kind)
