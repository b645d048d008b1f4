"""OpenDSR 2.0 (`/v2`) and OpenGDPR 1.0 (`/v1/opengdpr_requests`), as a processor that erases.

Every answer is signed; errors are 400 in OpenDSR's shape (401, 403 and 404 as they are), and name no value. What the
specification leaves open is decided in docs/guides/opendsr.md.
"""

import base64
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service.api.deps import SEES_ALL_REQUESTS, Reader, ServicesDep, Submitter, restricted_to, services_from
from service.api.errors import DATABASE_AWAY, field_name
from service.bootstrap import Services
from service.callbacks import opendsr
from service.callbacks.dialects import CallbackTarget, results_url
from service.db import models, requests
from service.db.tables import DeletionRequest
from service.domain.errors import Invalid, NotFound, ServiceError, Unavailable
from service.domain.notifications import dsr_word
from service.observability.logging import get_logger
from service.schemas.base import IDENTITY_TYPES
from service.schemas.opendsr import (
    Cancelled,
    Discovery,
    DsrError,
    DsrIn,
    Extension,
    OpenDsrIn,
    OpenGdprIn,
    Status,
    SubjectIdentity,
    Taken,
)
from service.schemas.subjects import IdentityIn
from service.steps.path.amend import cancel_request
from service.steps.path.request import Submission, accept_request

logger = get_logger(__name__)
TYPES = tuple(kind for kind in IDENTITY_TYPES if kind != "phone")  # ours alone; not OpenDSR's
FORMATS = ("raw", "sha1", "md5", "sha256")
KEPT_STATUS = (401, 403, 404, 503)
PEM = "application/x-pem-file"


class Signed(APIRoute):
    """A route whose every answer is signed in the dialect's headers."""

    names = opendsr.DIALECTS["opendsr"]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Turn errors into OpenDSR's, then sign what goes out."""
        handle = super().get_route_handler()

        async def signed(request: Request) -> Response:
            try:
                answer = await handle(request)
            except (ServiceError, RequestValidationError, HTTPException) as error:
                answer = error_response(error)
            except DATABASE_AWAY as error:
                logger.error("the database does not answer", error=type(error).__name__)
                answer = error_response(Unavailable("The database does not answer; repeat the request as it is."))
            services = services_from(request)
            headers = await run_in_threadpool(self.names.headers, services.opendsr, bytes(answer.body))
            answer.headers.update(headers)
            return answer

        return signed


class SignedGdpr(Signed):
    """The same under the older names."""

    names = opendsr.DIALECTS["opengdpr"]


def error_response(error: Exception) -> Response:
    """An error in OpenDSR's shape; it never repeats what was sent."""
    if isinstance(error, RequestValidationError):
        status, fields = 400, [(field_name(e["loc"]), _message(e)) for e in error.errors()]
    elif isinstance(error, ServiceError):
        status = error.status if error.status in KEPT_STATUS else 400
        fields = [({"received_at": "submitted_time"}.get(error.field or "", error.field or ""), error.detail)]
    else:
        assert isinstance(error, HTTPException)
        status, fields = error.status_code, [("body", "The body is not JSON in UTF-8.")]
    errors = [
        {"domain": "Validation" if field else "Request", "reason": "IllegalArgumentException", "message": text}
        for field, message in fields
        for text in [f"{field}: {message}" if field else message]
    ]
    body = {"error": {"code": status, "message": errors[0]["message"], "errors": errors}}
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, headers, media_type="application/json")


def _message(error: dict[str, Any]) -> str:
    return "The body is not valid JSON." if error["type"] == "json_invalid" else str(error["msg"])


async def _raw(request: Request) -> bytes:
    return await request.body()


Raw = Annotated[bytes, Depends(_raw)]


def dialect_router(dialect: str) -> APIRouter:
    """The endpoints in one of the two dialects."""
    names = opendsr.DIALECTS[dialect]
    newer = dialect == "opendsr"
    body_type = OpenDsrIn if newer else OpenGdprIn
    prefix, requests = ("/v2", "/requests") if newer else ("/v1", "/opengdpr_requests")
    wrong: dict[int | str, dict[str, Any]] = {
        code: {"model": DsrError, "content": {"application/json": {}}} for code in (400, 401, 403, 404, 503)
    }
    router = APIRouter(
        prefix=prefix, tags=[f"Open{'DSR 2.0' if newer else 'GDPR 1.0'}"],
        route_class=Signed if newer else SignedGdpr, responses=wrong,
    )  # fmt: skip

    @router.get("/discovery", operation_id=f"{dialect}_discovery")
    def discovery(services: ServicesDep, request: Request) -> Discovery:
        """What this processor can do; no key needed."""
        base = services.settings.public_url or str(request.base_url).rstrip("/")
        identities = [{"identity_type": kind, "identity_format": form} for kind in TYPES for form in FORMATS]
        return Discovery(
            api_version=names.api_version, supported_identities=identities,
            supported_subject_request_types=["erasure"], processor_certificate=f"{base}/v2/certificate.pem",
        )  # fmt: skip

    def submit(body: DsrIn, raw: Raw, services: ServicesDep, key: Submitter) -> Taken:
        """Take a request; the same id with the same body gives the same receipt."""
        submission = to_submission(services, body, dialect)
        try:
            accepted = accept_request(services, submission, key.id, f"{dialect}/{body.subject_request_id}").request
        except Invalid as error:
            if error.code != "idempotency_key_reused":
                raise
            raise Invalid("This id was used with another body.", field="subject_request_id") from None
        return Taken(
            controller_id=str(key.id), expected_completion_time=opendsr.timestamp(opendsr.expected_completion(accepted)),
            received_time=opendsr.timestamp(accepted.accepted_at), encoded_request=base64.b64encode(raw).decode(),
            subject_request_id=body.subject_request_id, api_version=names.api_version,
        )  # fmt: skip

    submit.__annotations__["body"] = body_type
    router.post(requests, status_code=201, operation_id=f"{dialect}_submit")(submit)

    @router.get(requests + "/{subject_request_id}", operation_id=f"{dialect}_get", response_model_exclude_none=True)
    @router.get(
        ("" if newer else "/opengdpr") + "/status/{subject_request_id}", operation_id=f"{dialect}_status",
        response_model_exclude_none=True,
    )  # fmt: skip
    def status(subject_request_id: UUID, services: ServicesDep, key: Reader) -> Status:
        """Where a request stands."""
        found = _find(services, subject_request_id, restricted_to(key, *SEES_ALL_REQUESTS))
        body = opendsr.status_body(found, dsr_word(found.status), results_url(services, found))
        return Status(**body, api_version=names.api_version)

    @router.delete(requests + "/{subject_request_id}", status_code=202, operation_id=f"{dialect}_cancel")
    def cancel(subject_request_id: UUID, services: ServicesDep, key: Submitter) -> Cancelled:
        """Cancel a request that is pending."""
        found = _find(services, subject_request_id, restricted_to(key))
        cancel_request(services, found.id)
        found = _find(services, subject_request_id, None)
        assert found.finished_at is not None
        return Cancelled(
            controller_id=str(found.api_key_id), subject_request_id=str(subject_request_id),
            received_time=opendsr.timestamp(found.finished_at), api_version=names.api_version,
        )  # fmt: skip

    return router


def _find(services: Services, subject_request_id: UUID, owner: UUID | None) -> DeletionRequest:
    with services.db.reading() as session:
        found = requests.by_subject_request(session, subject_request_id)
    if found is None or owner not in (None, found.api_key_id):
        raise NotFound("There is no such request.")
    return found


def to_submission(services: Services, body: DsrIn, dialect: str) -> Submission:
    """A request in our own terms.

    Raises:
        Invalid: An identity or our extension is not what it should be, or names nobody; the model is not clear.
    """
    ours = _extension(body.extensions.get(services.settings.processor_domain, {}))
    identities = [_identity(i, identity) for i, identity in enumerate(body.subject_identities)]
    names: list[str] = []
    if ours.subject is not None:
        identities += [identity.model_dump() for identity in ours.subject.identities]
        names = ours.subject.names
    if not identities and not names and not ours.records:
        raise Invalid("Identities are needed, here or in our extension.", field="subject_identities")
    regulation = body.regulation if isinstance(body, OpenDsrIn | OpenGdprIn) else "gdpr"
    return Submission(
        ours.model or _only_model(services),
        [record.text for record in ours.records],
        regulation,
        body.submitted_time,
        subject={"identities": identities, "names": names} if identities or names else None,
        callbacks=[CallbackTarget(str(url)) for url in body.status_callback_urls],
        columns={"dialect": dialect, "subject_request_id": UUID(body.subject_request_id)},
    )


def _identity(number: int, given: SubjectIdentity) -> dict[str, Any]:
    place = f"subject_identities.{number}"
    if given.identity_type not in TYPES:
        raise Invalid("Not a supported type; see discovery.", field=f"{place}.identity_type")
    try:
        return IdentityIn.model_validate(given.known()).model_dump()
    except ValidationError as error:
        field = {"format": "identity_format", "value": "identity_value"}[str(error.errors()[0]["loc"][0])]
        raise Invalid("Not of a supported form; see discovery.", field=f"{place}.{field}") from None


def _extension(given: Any) -> Extension:
    try:
        return Extension.model_validate(given)
    except ValidationError as error:
        where = field_name(("extensions", *error.errors()[0]["loc"]))
        raise Invalid(str(error.errors()[0]["msg"]), field=where) from None


def _only_model(services: Services) -> str:
    """The model, if there is just one: a request is never taken to be about some of several."""
    with services.db.reading() as session:
        found = models.listing(session, None, 2).items
    if len(found) != 1:
        raise Invalid("Name the model in our extension: there is not just one.", field="extensions", code="which_model")
    return found[0].name


certificates = APIRouter(tags=["OpenDSR 2.0"])


@certificates.get("/v2/certificate.pem", response_class=Response, responses={200: {"content": {PEM: {}}}})
def certificate(services: ServicesDep) -> Response:
    """The X.509 certificate of the key that signs."""
    return Response(services.opendsr.certificate(), media_type=PEM)
