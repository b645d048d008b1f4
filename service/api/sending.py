"""A file of a release as an answer: sent by this process, or by the nginx in front of it."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse

from service.bootstrap import Services
from service.db.tables import Version


def file_answer(
    services: Services, version: Version, file: Path, headers: Mapping[str, str], request: Request
) -> Response:
    """A file of a version's release, whole or a `Range`.

    With UNLEARND_ACCEL_PREFIX the answer to a GET that came through nginx has no body: `X-Accel-Redirect` names the
    file, and nginx sends it. nginx says in a header that it will.
    """
    media_type = "application/json" if file.suffix == ".json" else "application/octet-stream"
    prefix = services.settings.accel_prefix
    if request.method != "GET" or not prefix or request.headers.get("X-Sendfile-Type") != "X-Accel-Redirect":
        return FileResponse(file, headers=headers, media_type=media_type)
    place = file.relative_to(services.storage.release(version.digest).parent)
    return Response(headers={**headers, "X-Accel-Redirect": prefix + quote(str(place))}, media_type=media_type)
