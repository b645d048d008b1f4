"""A file of a release as an answer: sent by this process, by the nginx in front of it, or by the object storage."""

from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from service.audit.manifest import FileEntry
from service.bootstrap import Services
from service.collected import released_address, released_file
from service.db.tables import Version


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
    file, prefix = released_file(services, version, entry["path"]), services.settings.accel_prefix
    if not prefix or request.headers.get("X-Sendfile-Type") != "X-Accel-Redirect":
        return FileResponse(file, headers=headers, media_type=media_type)
    place = quote(f"{version.digest}/{entry['path']}")
    return Response(headers={**headers, "X-Accel-Redirect": prefix + place}, media_type=media_type)
