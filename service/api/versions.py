"""`/v1/models/{name}/versions`: published versions, their files and certificates."""

import base64
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from service.api.deps import Admin, DownloadAuditor, Downloader, ServicesDep, VersionReader, is_auditor
from service.api.guard import GuardedRoute
from service.api.paging import Cursor, Limit
from service.api.sending import file_answer
from service.audit import render
from service.audit.canonical import loads
from service.audit.manifest import DELTA_FOLDER, MODEL_FOLDER, FileEntry
from service.audit.verification import CERTIFICATE
from service.bootstrap import Services
from service.collected import check_released
from service.db import models
from service.db.api_keys import Caller
from service.db.tables import Version
from service.delta import DESCRIPTION
from service.domain.disclosure import disclosed
from service.domain.errors import Forbidden, NotFound
from service.schemas.base import Listing
from service.schemas.models import DownloadOut, FileOut, VersionOut, WithdrawalCost, WithdrawalIn
from service.schemas.report import write_report
from service.steps.operator.withdraw import withdraw_version, withdrawal_cost
from service.storage.interface import Storage

router = APIRouter(prefix="/v1/models/{name}/versions", tags=["versions"], route_class=GuardedRoute)
Form = Annotated[
    Literal["html", "markdown"] | None,
    Query(alias="as", description="a rendering for people, made from the signed bytes"),
]
Number = Annotated[
    str, Path(pattern=r"^(latest|v?\d{1,9})$", description="an integer, the same behind `v`, or `latest`")
]


def to_version_out(version: Version, name: str, caller: Caller) -> VersionOut:
    """The answer for a version, with the metrics that the caller may see."""
    metrics: dict[str, object] = {}
    if version.metrics is not None:
        contributors, auditor = version.metrics.contributors, is_auditor(caller)
        metrics = disclosed(write_report(version.metrics), contributors, auditor=auditor)
    attacks = cast(list[dict[str, object]], metrics.pop("attacks", []))
    return VersionOut(
        model=name,
        version=version.number,
        parent=version.parent.number if version.parent else None,
        job_id=version.job_id,
        created_at=version.created_at,
        digest=version.digest,
        metrics=metrics,
        attacks=attacks,
        files=[FileOut(**entry) for entry in version.files],
        withdrawn_at=version.withdrawn_at,
        withdrawn_reason=version.withdrawn_reason,
    )


@router.get("")
def listing(
    name: str, services: ServicesDep, caller: VersionReader, cursor: Cursor = None, limit: Limit = 50
) -> Listing[VersionOut]:
    """Versions of a model, newest first."""
    with services.db.reading() as session:
        model = models.existing(session, name)
        page = models.versions(session, model, cursor, limit)
        items = [to_version_out(version, name, caller) for version in page.items]
    return Listing(items=items, next_cursor=page.next_cursor)


@router.get("/{number}")
def get(name: str, number: Number, services: ServicesDep, caller: VersionReader) -> VersionOut:
    """One version with all files of its release folder. Means are shown or null as in `GET /v1/jobs/{id}`."""
    return to_version_out(find_version(services, name, number), name, caller)


def find_version(services: Services, name: str, number: str) -> Version:
    """A version by number or `latest`.

    Raises:
        NotFound: No such model or version.
    """
    with services.db.reading() as session:
        model = models.existing(session, name)
        latest = number == "latest"
        version = (
            models.newest_version(session, model) if latest else models.version(session, model, parse_number(number))
        )
        if version is None:
            raise NotFound("The model has no such version.")
        return version


def parse_number(number: str) -> int:
    """The integer in `1` or `v1`."""
    return int(number.removeprefix("v"))


def find_downloadable(services: Services, name: str, number: str, path: str, caller: Caller) -> list[Version]:
    """A version by number or `latest`, of which the caller may have the file. Evidence is for everybody.

    Whoever has a version and its delta can compute the delta's base. So a delta is for those who may have its base,
    which follows the version in the answer.

    Raises:
        NotFound: No such model or version, or the version or its delta's base was withdrawn.
        Forbidden: The version remembers a completed request; only keys with the scope `audit` may have it.
    """
    version = find_version(services, name, number)
    if version.withdrawn_at is not None:
        raise NotFound("This version was withdrawn.")
    needed = [version]
    if path.startswith(DELTA_FOLDER) and version.parent and (base := _delta_base(services, name, version)):
        needed.append(base)
        with services.db.reading() as session:
            if models.any_withdrawn(session, version.model_id, base.number, version.parent.number):
                raise NotFound("A version between this one and the base of its delta was withdrawn.")
    if path.startswith((MODEL_FOLDER, DELTA_FOLDER)) and len(handed_out(services, needed, caller)) < len(needed):
        raise Forbidden("This remembers completed requests; it needs the scope audit. Use the newest version's model.")
    return needed


def _delta_base(services: Services, name: str, version: Version) -> Version | None:
    """The version that a version's delta changes; None if it has no delta."""
    if not any(entry["path"].startswith(DELTA_FOLDER) for entry in version.files):
        return None
    description = json.loads(services.storage.file(version.digest, DELTA_FOLDER + DESCRIPTION).read_bytes())
    return find_version(services, name, str(description["base"]["version"]))


def _note_download(services: Services, versions: Sequence[Version], caller: Caller) -> None:
    """Enter a caller into the register of downloads of these versions."""
    with services.db.transaction() as session:
        for version in versions:
            models.note_download(session, version, caller.id)


def handed_out(services: Services, versions: Sequence[Version], caller: Caller) -> list[Version]:
    """Those versions, of some that are not withdrawn, whose files a caller may have."""
    if is_auditor(caller):
        return list(versions)
    with services.db.reading() as session:
        numbers = models.handed_out_from(session, {version.model_id for version in versions})
    return [version for version in versions if version.number >= numbers[version.model_id]]


@router.head("/{number}/files/{path:path}", include_in_schema=False)
@router.get("/{number}/files/{path:path}", response_class=FileResponse)
def file(name: str, number: Number, path: str, request: Request, services: ServicesDep, caller: Downloader) -> Response:
    """One file, whole or a `Range`. `ETag` is its sha256, and `Repr-Digest` is the same in the form of RFC 9530.

    Downloads of the files of a model or a delta are registered: see `GET .../downloads`.
    """
    versions = find_downloadable(services, name, number, path, caller)
    answer = _file_response(services, versions[0], path, request)
    if request.method == "GET" and path.startswith((MODEL_FOLDER, DELTA_FOLDER)):
        _note_download(services, versions, caller)
    return answer


@router.get("/{number}/withdrawal")
def withdrawal(name: str, number: Number, services: ServicesDep, _: Admin) -> WithdrawalCost:
    """What it would cost to withdraw this version now."""
    return WithdrawalCost(**withdrawal_cost(services, name, find_version(services, name, number).number)._asdict())


@router.post("/{number}/withdraw")
def withdraw(
    name: str,
    number: Annotated[str, Path(pattern=r"^v?\d{1,9}$", description="an integer, or the same behind `v`")],
    body: WithdrawalIn,
    services: ServicesDep,
    caller: Admin,
) -> VersionOut:
    """Withdraw a version. Its files answer 404, here and under `/hub`. Its certificate stays.

    Completed requests that no remaining version fulfils become open again, if `reopen` says so, and are unlearned from
    the newest version that is left.
    """
    withdraw_version(services, name, parse_number(number), body.reason, caller.id, reopen=body.reopen)
    return to_version_out(find_version(services, name, number), name, caller)


@router.get("/{number}/downloads")
def downloads(name: str, number: Number, services: ServicesDep, _: DownloadAuditor) -> Listing[DownloadOut]:
    """API keys that downloaded files of this version, to notify when it is superseded (GDPR, article 19)."""
    version = find_version(services, name, number)
    with services.db.reading() as session:
        rows = models.downloads(session, version)
    items = [DownloadOut(api_key_id=row.api_key_id, name=row.api_key.name, first_at=row.first_at) for row in rows]
    return Listing(items=items, next_cursor=None)


@router.get("/{number}/archive.tar", response_class=StreamingResponse)
def archive(name: str, number: Number, services: ServicesDep, caller: Downloader) -> Response:
    """The release folder without its delta as one tar stream.

    It cannot be resumed; if it breaks off, download single files.
    """
    return _tar_response(services, name, find_downloadable(services, name, number, MODEL_FOLDER, caller), caller)


@router.get("/{number}/delta.tar", response_class=StreamingResponse)
def delta(name: str, number: Number, services: ServicesDep, caller: Downloader) -> Response:
    """The release folder with its delta in place of the model, as one tar stream, for `unlearnd apply`.

    Whoever has a version and its delta can compute the version that the delta changes. So a delta is for those who may
    have that version, too.
    """
    versions = find_downloadable(services, name, number, DELTA_FOLDER, caller)
    if len(versions) == 1:
        raise NotFound(f"Version {versions[0].number} has no delta.")
    return _tar_response(services, name, versions, caller, delta=True)


def _tar_response(
    services: Services, name: str, versions: Sequence[Version], caller: Caller, *, delta: bool = False
) -> Response:
    """The first version's files without the delta, or without the model, as a tar stream, registered for all."""
    version = versions[0]
    left_out = MODEL_FOLDER if delta else DELTA_FOLDER
    files = [entry for entry in version.files if not entry["path"].startswith(left_out)]
    check_released(services, version, [entry["path"] for entry in files])
    _note_download(services, versions, caller)
    size = sum(tarfile.BLOCKSIZE + _padded_size(entry["size"]) for entry in files) + 2 * tarfile.BLOCKSIZE
    file_name = f"{name}-v{version.number}{'-delta' if delta else ''}.tar"
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{file_name}"'}
    stream = _tar_stream(services.storage, version, files)
    return StreamingResponse(stream, headers=headers, media_type="application/x-tar")


def _tar_stream(storage: Storage, version: Version, files: Sequence[FileEntry]) -> Iterator[bytes]:
    """A POSIX archive of some of a version's files, part by part."""
    for entry in files:
        header = tarfile.TarInfo(entry["path"])
        header.size, header.mode, header.mtime = entry["size"], 0o644, int(version.created_at.timestamp())
        yield header.tobuf(tarfile.USTAR_FORMAT)
        yield from storage.parts(version.digest, entry["path"])
        yield bytes(_padded_size(entry["size"]) - entry["size"])
    yield bytes(2 * tarfile.BLOCKSIZE)


def _padded_size(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@router.get("/{number}/certificate", response_class=FileResponse)
def certificate(
    name: str, number: Number, request: Request, services: ServicesDep, _: VersionReader, form: Form = None
) -> Response:
    """The certificate: a DSSE envelope, or its statement as HTML or Markdown. Version 0, the base model, has none."""
    version = find_version(services, name, number)
    answer = _file_response(services, version, CERTIFICATE, request)
    if form is None:
        return answer
    return render_certificate(services.storage.file(version.digest, CERTIFICATE).read_bytes(), form)


def render_certificate(envelope: bytes, form: str) -> Response:
    """The statement of a certificate as HTML or Markdown, made from the signed bytes."""
    statement = loads(base64.b64decode(json.loads(envelope)["payload"]))
    text = render.html(statement) if form == "html" else render.markdown(statement)
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(text, media_type=f"text/{form}; charset=utf-8", headers=headers)


def _file_response(services: Services, version: Version, path: str, request: Request) -> Response:
    """A file that the version lists. The list, not the path, decides which files can be read."""
    entry = next((entry for entry in version.files if entry["path"] == path), None)
    if entry is None:
        raise NotFound(f"Version {version.number} has no such file.")
    digest = base64.b64encode(bytes.fromhex(entry["sha256"])).decode()
    headers = {
        "ETag": f'"{entry["sha256"]}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }
    if headers["ETag"] in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return file_answer(services, version, entry, headers, request)
