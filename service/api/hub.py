"""`/hub`: the API of the Hugging Face hub, so that `from_pretrained("org/name", revision="v3")` works unchanged.

Clients set `HF_ENDPOINT=URL/hub` and `HF_TOKEN=<an API key with the scope download>`. A revision is `v3`, `3`,
`latest`, `main`, or a version's commit: the first 40 hex digits of its manifest's sha256. A repository holds the
`model/` folder of a version. The whole release, which `unlearnd verify` needs, is under `/v1`.
"""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session

from service.api.deps import Downloader, ServicesDep, service_url
from service.api.guard import GuardedRoute
from service.api.sending import file_answer
from service.api.versions import handed_out
from service.audit.manifest import MODEL_FOLDER, FileEntry
from service.bootstrap import Services
from service.collected import Rebuilding
from service.db import models
from service.db.api_keys import Caller
from service.db.tables import Model, Version
from service.domain.errors import ServiceError


class HubRoute(GuardedRoute):
    """A route of the hub. Its clients send parameters for what this hub does not have."""

    ignores_parameters = True


router = APIRouter(prefix="/hub", tags=["hub"], route_class=HubRoute)
Org = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$", description="any value: model names are unique without it")]
Name = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$")]
Revision = Annotated[str, Path(pattern=r"^[\w.-]{1,96}$")]
COMMIT_DIGITS = 40
ANY_ORG = "any"  # in a list of models that names no organisation
MAX_MODELS = 1000  # of one page


class HubError(ServiceError):
    """There is no such repository, revision or file. `X-Error-Code` holds the hub's code for it."""

    status, code, title = 404, "not_found", "There is no such thing"

    def __init__(self, hub_code: str, detail: str) -> None:
        """`hub_code` is the code that the client library expects."""
        super().__init__(detail)
        self.headers = {"X-Error-Code": hub_code, "X-Error-Message": detail}


@router.get("/api/models")
def listing(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Downloader,
    search: Annotated[str, Query(max_length=200, description="a part of the model's name")] = "",
    author: Annotated[str, Query(pattern=r"^[\w.-]{1,96}$", description="the organisation of the answer")] = ANY_ORG,
    limit: Annotated[
        int, Query(ge=1, description="most models of a page; further ones are in the `Link`")
    ] = MAX_MODELS,
    cursor: Annotated[str, Query(max_length=200, description="taken from the `Link` of the page before")] = "",
) -> list[dict[str, object]]:
    """Models with a version that can be loaded, by name, each with its newest version. Other parameters are ignored."""
    limit, part = min(limit, MAX_MODELS), search.lower().rpartition("/")[2]
    with services.db.reading() as session:
        newest_versions = models.newest_versions(session, search=part, after=cursor, limit=limit + 1)
    page = newest_versions[:limit]
    if len(newest_versions) > limit:
        query = request.url.include_query_params(cursor=page[-1][0]).query
        response.headers["Link"] = f'<{service_url(request)}{router.prefix}/api/models?{query}>; rel="next"'
    shown = handed_out(services, [version for _, version in page], caller)
    return [_model_info(author, name, version) for name, version in page if version in shown]


@router.get("/api/models/{org}/{name}/refs")
def refs(org: Org, name: Name, services: ServicesDep, caller: Downloader) -> dict[str, list[dict[str, str]]]:
    """The branch `main`, which is the newest version, and a tag for each version."""
    versions = _handed_out_versions(services, name, caller)
    tags = [_ref("tags", f"v{version.number}", version) for version in versions]
    branches = [_ref("heads", "main", version) for version in versions[:1]]
    return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}


def _ref(kind: str, name: str, version: Version) -> dict[str, str]:
    """A branch or tag."""
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": version.digest[:COMMIT_DIGITS]}


@router.get("/api/models/{org}/{name}/commits/{revision}")
def commits(
    org: Org, name: Name, revision: Revision, services: ServicesDep, caller: Downloader
) -> list[dict[str, object]]:
    """A revision and the versions before it, newest first."""
    version, _commit = _find_version(services, name, revision, caller)
    versions = _handed_out_versions(services, name, caller)
    return [
        {
            "id": earlier.digest[:COMMIT_DIGITS],
            "title": f"Version {earlier.number}" if earlier.number else "Version 0, the base model",
            "message": "",
            "authors": [{"user": services.settings.issuer}],
            "date": _time(earlier.created_at),
        }
        for earlier in versions
        if earlier.number <= version.number
    ]


@router.get("/api/models/{org}/{name}")
def newest(org: Org, name: Name, services: ServicesDep, caller: Downloader) -> dict[str, object]:
    """The newest version of a model."""
    return info(org, name, "main", services, caller)


@router.get("/api/models/{org}/{name}/revision/{revision}")
def info(org: Org, name: Name, revision: Revision, services: ServicesDep, caller: Downloader) -> dict[str, object]:
    """A revision and the names of its files."""
    version, _commit = _find_version(services, name, revision, caller)
    siblings = [{"rfilename": entry["path"].removeprefix(MODEL_FOLDER)} for entry in _model_files(version)]
    return {**_model_info(org, name, version), "siblings": siblings}


def _model_info(org: str, name: str, version: Version) -> dict[str, object]:
    """What the hub says of a model at a version, without its files."""
    commit, created_at = version.digest[:COMMIT_DIGITS], _time(version.created_at)
    return {
        "_id": commit[:24],
        "id": f"{org}/{name}",
        "modelId": f"{org}/{name}",
        "author": org,
        "sha": commit,
        "private": True,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "createdAt": created_at,
        "lastModified": created_at,
    }


def _time(value: datetime) -> str:
    """A time as the hub's clients read it."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@router.get("/api/models/{org}/{name}/tree/{revision}")
def tree(
    org: Org, name: Name, revision: Revision, services: ServicesDep, caller: Downloader
) -> list[dict[str, object]]:
    """The files of a revision, each with its size and sha256."""
    version, _commit = _find_version(services, name, revision, caller)
    return [
        {
            "type": "file",
            "path": entry["path"].removeprefix(MODEL_FOLDER),
            "size": entry["size"],
            "oid": entry["sha256"][:COMMIT_DIGITS],
            "lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134},
        }
        for entry in _model_files(version)
    ]


@router.head("/{org}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
@router.get("/{org}/{name}/resolve/{revision}/{path:path}", response_class=FileResponse)
def resolve(
    org: Org, name: Name, revision: Revision, path: str, request: Request, services: ServicesDep, caller: Downloader
) -> Response:
    """One file, whole or a `Range`."""
    version, commit = _find_version(services, name, revision, caller)
    entry = next((entry for entry in _model_files(version) if entry["path"] == MODEL_FOLDER + path), None)
    if entry is None:
        raise HubError("EntryNotFound", "The revision has no such file.")
    headers = {
        "ETag": f'"{entry["sha256"]}"',
        "X-Repo-Commit": commit,
        "X-Linked-Etag": f'"{entry["sha256"]}"',
        "X-Linked-Size": str(entry["size"]),
        "Cache-Control": "private, no-cache, no-transform",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(entry['sha256'])).decode()}:",
    }
    try:
        answer = file_answer(services, version, entry, headers, request)
    except Rebuilding as error:
        error.headers = {**(error.headers or {}), "X-Error-Message": str(error)}
        raise
    if request.method == "GET":
        with services.db.transaction() as session:
            models.note_download(session, version, caller.id)
    return answer


def _find_version(services: Services, name: str, revision: str, caller: Caller) -> tuple[Version, str]:
    """A version and its commit.

    Raises:
        HubError: There is no such model (RepoNotFound) or version (RevisionNotFound), or the version is not handed out.
    """
    with services.db.reading() as session:
        model = _find_model(session, name)
        number = revision.removeprefix("v")
        if revision in ("latest", "main"):
            version = models.newest_version(session, model)
        elif number.isdecimal() and len(number) < 10:
            version = models.version(session, model, int(number))
        else:
            version = models.by_commit(session, model, revision) if len(revision) == COMMIT_DIGITS else None
    if version is None or version.withdrawn_at is not None or not handed_out(services, [version], caller):
        raise HubError("RevisionNotFound", "The model has no such version, or it is not handed out any more.")
    return version, version.digest[:COMMIT_DIGITS]


def _find_model(session: Session, name: str) -> Model:
    """The model of a repository.

    Raises:
        HubError: There is none (RepoNotFound).
    """
    model = models.by_name(session, name)
    if model is None:
        raise HubError("RepoNotFound", "There is no model of that name.")
    return model


def _handed_out_versions(services: Services, name: str, caller: Caller) -> list[Version]:
    """Every version of a model that the caller may load, newest first.

    Raises:
        HubError: There is no such model (RepoNotFound).
    """
    with services.db.reading() as session:
        versions = models.remaining_versions(session, _find_model(session, name))
    return handed_out(services, versions, caller)


def _model_files(version: Version) -> Sequence[FileEntry]:
    return [entry for entry in version.files if entry["path"].startswith(MODEL_FOLDER)]
