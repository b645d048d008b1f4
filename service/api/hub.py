"""`/hub`: the dialect of the Hugging Face hub, so that `from_pretrained("org/name", revision="v3")` works unchanged.

With `HF_ENDPOINT=URL/hub` and `HF_TOKEN=<an API key with the scope download>`. A revision is `v3`, `3`, `latest`,
`main`, or the 40 hex digits that stand for a version (the first of its manifest's sha256). The repository is a
version's `model/`; the whole release, for `unlearnd verify`, is under `/v1`.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from service.api.deps import Downloader, ServicesDep
from service.audit.manifest import FileEntry
from service.bootstrap import Services
from service.db import models
from service.db.tables import Version
from service.domain.errors import ServiceError

router = APIRouter(prefix="/hub", tags=["hub"])
Org = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$", description="any: names are unique without it")]
Name = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$")]
Revision = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$")]
MODEL = "model/"
COMMIT = 40  # hex digits


class HubError(ServiceError):
    """Something is not there, in the hub's words: they go into X-Error-Code."""

    status, code, title = 404, "not_found", "There is no such thing"

    def __init__(self, word: str, detail: str) -> None:
        """Say which word the client library looks for."""
        super().__init__(detail)
        self.headers = {"X-Error-Code": word, "X-Error-Message": detail}


@router.get("/api/models/{org}/{name}")
def newest(org: Org, name: Name, services: ServicesDep, key: Downloader) -> dict[str, Any]:
    """What the newest version holds."""
    return info(org, name, "main", services, key)


@router.get("/api/models/{org}/{name}/revision/{revision}")
def info(org: Org, name: Name, revision: Revision, services: ServicesDep, _: Downloader) -> dict[str, Any]:
    """What a revision holds."""
    version, commit = _find(services, name, revision)
    files = [{"rfilename": f["path"].removeprefix(MODEL)} for f in _files(version)]
    return {
        "_id": commit[:24], "id": f"{org}/{name}", "modelId": f"{org}/{name}", "sha": commit, "private": True,
        "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": files,
        "createdAt": version.created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "lastModified": version.created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
    }  # fmt: skip


@router.get("/api/models/{org}/{name}/tree/{revision}")
def tree(org: Org, name: Name, revision: Revision, services: ServicesDep, _: Downloader) -> list[dict[str, Any]]:
    """The files of a revision, each with its size and sha256."""
    version, _commit = _find(services, name, revision)
    return [
        {
            "type": "file", "path": f["path"].removeprefix(MODEL), "size": f["size"], "oid": f["sha256"][:COMMIT],
            "lfs": {"oid": f["sha256"], "size": f["size"], "pointerSize": 134},
        }
        for f in _files(version)
    ]  # fmt: skip


@router.head("/{org}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
@router.get("/{org}/{name}/resolve/{revision}/{path:path}", response_class=FileResponse)
def resolve(
    org: Org, name: Name, revision: Revision, path: str, request: Request, services: ServicesDep, key: Downloader
) -> Response:
    """One file, whole or a `Range`."""
    version, commit = _find(services, name, revision)
    entry = next((f for f in _files(version) if f["path"] == MODEL + path), None)
    if entry is None:
        raise HubError("EntryNotFound", "The revision has no such file.")
    if request.method == "GET":
        with services.db.transaction() as session:
            models.note_download(session, version, key.id)
    headers = {
        "ETag": f'"{entry["sha256"]}"', "X-Repo-Commit": commit, "X-Linked-Etag": f'"{entry["sha256"]}"',
        "X-Linked-Size": str(entry["size"]), "Cache-Control": "private, no-cache, no-transform",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(entry['sha256'])).decode()}:",
    }  # fmt: skip
    file = services.storage.release(version.digest) / entry["path"]
    return FileResponse(file, headers=headers, media_type="application/octet-stream")


def _find(services: Services, name: str, revision: str) -> tuple[Version, str]:
    """A version and the 40 hex digits that stand for it.

    Raises:
        HubError: RepoNotFound or RevisionNotFound; a withdrawn version is not found.
    """
    with services.db.reading() as session:
        model = models.by_name(session, name)
        if model is None:
            raise HubError("RepoNotFound", "There is no model of that name.")
        number = revision.removeprefix("v")
        if revision in ("latest", "main"):
            version = models.newest_version(session, model)
        elif number.isdecimal() and len(number) < 10:
            version = models.version(session, model, int(number))
        else:
            version = models.by_commit(session, model, revision) if len(revision) == COMMIT else None
    if version is None or version.withdrawn_at is not None:
        raise HubError("RevisionNotFound", "The model has no such version, or it was withdrawn.")
    return version, version.digest[:COMMIT]


def _files(version: Version) -> Sequence[FileEntry]:
    return [f for f in version.files if f["path"].startswith(MODEL)]
