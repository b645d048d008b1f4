"""OpenDSR 2.0 (`/v2`) and OpenGDPR 1.0 (`/v1/opengdpr_requests`), as a processor that erases.

Both dialects share their endpoints. docs/guides/opendsr.md holds our decisions where the specification leaves a choice.
"""

import base64
from collections.abc import Callable
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.api.deps import RawBody, Reader, ServicesDep, Submitter, restricted_to, sees_counts, service_url
from service.api.errors import field_name
from service.api.guard import GuardedRoute
from service.api.platforms.opendsr_route import DialectName, OpenDsrRoute, OpenGdprRoute, SignedRoute
from service.bootstrap import Services
from service.callbacks.dialects import results_url
from service.callbacks.opendsr import DIALECTS, expected_completion, status_body, timestamp
from service.db import models, requests
from service.db.api_keys import Caller
from service.db.tables import DeletionRequest
from service.domain.errors import Invalid, NotFound
from service.domain.notifications import opendsr_status
from service.domain.subject import Identity
from service.domain.submission import CallbackTarget, Submission
from service.schemas.base import IDENTITY_TYPES
from service.schemas.opendsr import (
    Cancelled,
    Discovery,
    DsrError,
    Extension,
    OpenDsrIn,
    OpenGdprIn,
    Status,
    SubjectIdentity,
    Taken,
)
from service.schemas.subjects import IdentityIn
from service.steps.path.amend import cancel_request
from service.steps.path.request import accept_request

SUPPORTED_TYPES = tuple(kind for kind in IDENTITY_TYPES if kind != "phone")  # OpenDSR has no identity type `phone`
SUPPORTED_FORMATS = ("raw", "sha1", "md5", "sha256")
PEM = "application/x-pem-file"
ID = "{subject_request_id}"  # path parameter
ERROR_RESPONSES: dict[int | str, dict[str, object]] = {
    status: {"model": DsrError, "content": {"application/json": {}}} for status in (400, 401, 403, 404, 503)
}


def discovery(request: Request, dialect: DialectName) -> Discovery:
    """The identities and request types that this processor supports. It needs no key."""
    return Discovery(
        api_version=DIALECTS[dialect].api_version,
        supported_identities=[
            {"identity_type": kind, "identity_format": form} for kind in SUPPORTED_TYPES for form in SUPPORTED_FORMATS
        ],
        supported_subject_request_types=["erasure"],
        processor_certificate=f"{service_url(request)}/v2/certificate.pem",
    )


def submit_opendsr(body: OpenDsrIn, raw: RawBody, services: ServicesDep, caller: Submitter) -> Taken:
    """Accept a request. The same id with the same body gets the same receipt."""
    return _submit(body, raw, services, caller, OpenDsrRoute.dialect)


def submit_opengdpr(body: OpenGdprIn, raw: RawBody, services: ServicesDep, caller: Submitter) -> Taken:
    """Accept a request. The same id with the same body gets the same receipt."""
    return _submit(body, raw, services, caller, OpenGdprRoute.dialect)


def _submit(body: OpenDsrIn | OpenGdprIn, raw: bytes, services: Services, caller: Caller, dialect: str) -> Taken:
    submission = to_submission(services, body, dialect)
    try:
        request = accept_request(services, submission, caller.id, f"{dialect}/{body.subject_request_id}").request
    except Invalid as error:
        if error.code != "idempotency_key_reused":
            raise
        raise Invalid("This id was used with another body.", field="subject_request_id") from None
    return Taken(
        controller_id=str(caller.id),
        expected_completion_time=timestamp(expected_completion(request)),
        received_time=timestamp(request.accepted_at),
        encoded_request=base64.b64encode(raw).decode(),
        subject_request_id=body.subject_request_id,
        api_version=DIALECTS[dialect].api_version,
    )


def status(subject_request_id: UUID, services: ServicesDep, caller: Reader, dialect: DialectName) -> Status:
    """The status of a request. A controller sees its own alone, whatever its key may see elsewhere."""
    request = _find_request(services, subject_request_id, restricted_to(caller))
    body = status_body(
        request, opendsr_status(request.status), results_url(services, request), exact=sees_counts(caller)
    )
    return Status(**body, api_version=DIALECTS[dialect].api_version)


def cancel(subject_request_id: UUID, services: ServicesDep, caller: Submitter, dialect: DialectName) -> Cancelled:
    """Cancel a pending request."""
    request = _find_request(services, subject_request_id, restricted_to(caller))
    cancel_request(services, request.id, caller.id)
    request = _find_request(services, subject_request_id, None)
    assert request.finished_at is not None
    return Cancelled(
        controller_id=str(request.api_key_id),
        subject_request_id=str(subject_request_id),
        received_time=timestamp(request.finished_at),
        api_version=DIALECTS[dialect].api_version,
    )


def _dialect_router(
    route_class: type[SignedRoute],
    submit: Callable[..., Taken],
    *,
    prefix: str,
    tag: str,
    requests_path: str,
    status_path: str,
) -> APIRouter:
    """The endpoints under the paths of one dialect."""
    dialect = route_class.dialect
    router = APIRouter(prefix=prefix, tags=[tag], route_class=route_class, responses=ERROR_RESPONSES)
    router.get("/discovery", operation_id=f"{dialect}_discovery")(discovery)
    router.post(requests_path, status_code=201, operation_id=f"{dialect}_submit", name="submit")(submit)
    router.get(f"{status_path}/{ID}", operation_id=f"{dialect}_status", response_model_exclude_none=True)(status)
    router.get(f"{requests_path}/{ID}", operation_id=f"{dialect}_get", response_model_exclude_none=True)(status)
    router.delete(f"{requests_path}/{ID}", status_code=202, operation_id=f"{dialect}_cancel")(cancel)
    return router


opendsr_router = _dialect_router(
    OpenDsrRoute,
    submit_opendsr,
    prefix="/v2",
    tag="OpenDSR 2.0",
    requests_path="/requests",
    status_path="/status",
)
opengdpr_router = _dialect_router(
    OpenGdprRoute,
    submit_opengdpr,
    prefix="/v1",
    tag="OpenGDPR 1.0",
    requests_path="/opengdpr_requests",
    status_path="/opengdpr/status",
)
certificate_router = APIRouter(tags=["OpenDSR 2.0"], route_class=GuardedRoute)


@certificate_router.get("/v2/certificate.pem", response_class=Response, responses={200: {"content": {PEM: {}}}})
def certificate(services: ServicesDep) -> Response:
    """The X.509 certificate of the signing key."""
    return Response(services.opendsr.certificate(), media_type=PEM)


def _find_request(services: Services, subject_request_id: UUID, api_key_id: UUID | None) -> DeletionRequest:
    """The request with this OpenDSR id, if this API key submitted it; None allows any key."""
    with services.db.reading() as session:
        request = requests.by_subject_request(session, subject_request_id)
    if request is None or api_key_id not in (None, request.api_key_id):
        raise NotFound("There is no such request.")
    return request


def to_submission(services: Services, body: OpenDsrIn | OpenGdprIn, dialect: str) -> Submission:
    """The submission in a body.

    Raises:
        Invalid: An identity or our extension is not valid; nobody is named; or the model is ambiguous.
    """
    extension = _extension(body.extensions.get(services.settings.processor_domain, {}))
    identities = [_identity(i, identity) for i, identity in enumerate(body.subject_identities)]
    names: list[str] = []
    if extension.subject is not None:
        identities += [identity.to_identity() for identity in extension.subject.identities]
        names = extension.subject.names
    if not identities and not names and not extension.records:
        raise Invalid("Identities are needed, here or in our extension.", field="subject_identities")
    return Submission(
        extension.model or _only_model(services),
        [record.text for record in extension.records],
        body.regulation,
        body.submitted_time,
        subject={"identities": identities, "names": names} if identities or names else None,
        callbacks=[CallbackTarget(url) for url in dict.fromkeys(map(str, body.status_callback_urls))],
        columns={"dialect": dialect, "subject_request_id": UUID(body.subject_request_id)},
    )


def _identity(index: int, identity: SubjectIdentity) -> Identity:
    """An identity of the body in the form of our own requests. `index` is its place in the list, for errors."""
    place = f"subject_identities.{index}"
    if identity.identity_type not in SUPPORTED_TYPES:
        raise Invalid("Not a supported type; see discovery.", field=f"{place}.identity_type")
    try:
        return IdentityIn.model_validate(identity.to_identity()).to_identity()
    except ValidationError as error:
        field = {"format": "identity_format", "value": "identity_value"}[str(error.errors()[0]["loc"][0])]
        raise Invalid("Not of a supported form; see discovery.", field=f"{place}.{field}") from None


def _extension(value: object) -> Extension:
    """Our extension; its member of the body may have any JSON value."""
    try:
        return Extension.model_validate(value)
    except ValidationError as error:
        field = field_name(("extensions", *error.errors()[0]["loc"]))
        raise Invalid(str(error.errors()[0]["msg"]), field=field) from None


def _only_model(services: Services) -> str:
    """The model, if there is only one. If there are several, a request must name its model."""
    with services.db.reading() as session:
        first_two = models.listing(session, None, 2).items
    if len(first_two) != 1:
        raise Invalid("Name the model in our extension: there is not just one.", field="extensions", code="which_model")
    return first_two[0].name
