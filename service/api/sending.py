"""A file of a release as an answer: sent by this process, by the nginx in front of it, or by the object storage."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from service.audit.manifest import FileEntry
from service.bootstrap import Services
from service.collected import check_released, released_address, released_file
from service.db.tables import Version

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_answer(
    services: Services, version: Version, entry: FileEntry, headers: Mapping[str, str], request: Request
) -> Response:
    """A file of a version's release, whole or a `Range`. A HEAD reads nothing: what was removed may be rebuilt later.

    With UNLEARND_ACCEL_PREFIX the answer to a GET that came through nginx has no body: `X-Accel-Redirect` names the
    file, and nginx sends it. nginx says in a header that it will. With UNLEARND_PRESIGN_SECONDS the answer is a
    redirection to the object storage.

    Raises:
        Rebuilding: The file was removed, and is rebuilt now.
    """
    media_type = "application/json" if entry["path"].endswith(".json") else "application/octet-stream"
    if request.method == "HEAD":
        more = {"Content-Length": str(entry["size"]), "Accept-Ranges": "bytes"}
        return Response(headers={**headers, **more}, media_type=media_type)
    if address := released_address(services, version, entry["path"]):
        return RedirectResponse(address, status_code=302, headers=headers)
    if services.settings.storage_url:
        check_released(services, version, [entry["path"]])
        return _streamed(services, version, entry, headers, request, media_type)
    file, prefix = released_file(services, version, entry["path"]), services.settings.accel_prefix
    if not prefix or request.headers.get("X-Sendfile-Type") != "X-Accel-Redirect":
        return FileResponse(file, headers=headers, media_type=media_type)
    place = quote(f"{version.digest}/{entry['path']}")
    return Response(headers={**headers, "X-Accel-Redirect": prefix + place}, media_type=media_type)


def _streamed(
    services: Services,
    version: Version,
    entry: FileEntry,
    headers: Mapping[str, str],
    request: Request,
    media_type: str,
) -> Response:
    """What is asked for of a file, read from the object storage while it is sent (RFC 9110, section 14)."""
    size = entry["size"]
    valid = request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
    asked = asked_range(request.headers.get("Range", "") if valid else "", size)
    if asked is not None and not asked:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    places = range(size) if asked is None else asked
    more = {"Content-Length": str(len(places)), "Accept-Ranges": "bytes"}
    if asked is not None:
        more["Content-Range"] = f"bytes {places.start}-{places.stop - 1}/{size}"
    parts = services.storage.parts(version.digest, entry["path"], places)
    status = 200 if asked is None else 206
    return StreamingResponse(parts, status_code=status, headers={**headers, **more}, media_type=media_type)


def asked_range(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for; empty if there are none, None if it asks for the whole or for several."""
    match = RANGE.fullmatch(header)
    if not match or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return range(max(size - int(match[2]), 0), size)
    start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    return None if match[2] and int(match[2]) < start else range(start, max(stop, start))
