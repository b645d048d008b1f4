"""Routes whose every answer, errors included, is signed and has OpenDSR's form.

Errors are 400 (401, 403, 404 and 503 keep their status). They never repeat submitted values.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, ClassVar

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.deps import services_from
from service.api.errors import listed_errors
from service.api.guard import GuardedRoute
from service.api.limits import admission_from, peer
from service.callbacks.opendsr import DIALECTS
from service.db.session import DATABASE_AWAY
from service.domain.errors import ServiceError, Unavailable
from service.observability.logging import get_logger

logger = get_logger(__name__)
KEPT_STATUS = (401, 403, 404, 503)
FIELD_NAMES = {"received_at": "submitted_time"}  # our name of a field -> OpenDSR's, where they differ


class SignedRoute(GuardedRoute):
    """A route of one dialect. The dialect's headers carry the signature of each answer."""

    dialect: ClassVar[str]  # a key of DIALECTS

    def get_route_handler(self) -> Callable[[Request], Coroutine[None, None, Response]]:
        """Wrap the endpoint: put errors into OpenDSR's form, then sign the answer."""
        handle = super().get_route_handler()

        async def handle_and_sign(request: Request) -> Response:
            request.state.dialect = self.dialect
            try:
                answer = await handle(request)
            except (ServiceError, RequestValidationError, HTTPException) as error:
                answer = error_response(error)
            except DATABASE_AWAY as error:
                logger.error("the database does not answer", error=type(error).__name__)
                answer = error_response(Unavailable("The database does not answer; repeat the request as it is."))
            signer = services_from(request).opendsr
            admission = admission_from(request)
            async with admission.turn(request.scope.get("unlearnd.holder", peer(request))):  # a signature takes 2 ms
                headers = await run_in_threadpool(DIALECTS[self.dialect].headers, signer, bytes(answer.body))
            answer.headers.update(headers)
            return answer

        return handle_and_sign


class OpenDsrRoute(SignedRoute):
    """A route of OpenDSR 2.0."""

    dialect = "opendsr"


class OpenGdprRoute(SignedRoute):
    """A route of OpenGDPR 1.0."""

    dialect = "opengdpr"


async def _dialect(request: Request) -> str:
    dialect: str = request.state.dialect
    return dialect


DialectName = Annotated[str, Depends(_dialect)]  # the dialect of the request's SignedRoute


def error_response(error: Exception) -> Response:
    """An error in OpenDSR's form."""
    status, messages = _status_and_messages(error)
    errors = [
        {
            "domain": "Validation" if field else "Request",
            "reason": "IllegalArgumentException",
            "message": f"{field}: {message}" if field else message,
        }
        for field, message in messages
    ]
    body = {"error": {"code": status, "message": errors[0]["message"], "errors": errors}}
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, headers, media_type="application/json")


def _status_and_messages(error: Exception) -> tuple[int, list[tuple[str, str]]]:
    """The HTTP status of an error, and its messages, each with the name of its field or an empty name."""
    if isinstance(error, RequestValidationError):
        return 400, [(entry["field"], entry["message"]) for entry in listed_errors(error)]
    if isinstance(error, ServiceError):
        field = error.field or ""
        status = error.status if error.status in KEPT_STATUS else 400
        return status, [(FIELD_NAMES.get(field, field), error.detail)]
    assert isinstance(error, HTTPException)
    return error.status_code, [("body", "The body is not JSON in UTF-8.")]
