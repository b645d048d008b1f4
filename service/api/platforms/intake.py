"""Code that the webhooks of privacy platforms share: it turns identifiers into an accepted request.

A webhook that a platform repeats gets the same request again.
"""

import json
from collections.abc import Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, ConfigDict, ValidationError

from service.api.json_body import invalid_body
from service.bootstrap import Services
from service.db import api_keys
from service.domain.errors import Invalid, Unauthenticated
from service.domain.subject import Identity
from service.domain.submission import CallbackTarget, Submission
from service.steps.path.request import accept_request
from service.subjects.identifiers import NotAnIdentity, normalise

IDENTITY_TYPE_BY_NAME = {"email": "email", "phone": "phone", "phone_number": "phone", "phoneNumber": "phone"}
ModelName = Annotated[str, Path(max_length=63, description="the model that is unlearned")]
MAX_IDENTITIES = 50
MAX_VALUE = 500  # characters of an identifier
Identifier = tuple[str, str]  # identity type, value


class PlatformBody(BaseModel):
    """Base of platforms' bodies. Unknown members are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)


Body = TypeVar("Body", bound=PlatformBody)


def parse_signed(kind: type[Body], raw: bytes) -> Body:
    """Parse a body whose signature was checked. The signature is over the bytes, so FastAPI cannot parse it first.

    Raises:
        RequestValidationError: The body is not valid.
        HTTPException: The body is not in UTF-8.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_body(error, kind, raw) from None


def identity_type(services: Services, name: str) -> str | None:
    """The identity type for a platform's name of an identifier; None if people are not looked up by it here."""
    return {**IDENTITY_TYPE_BY_NAME, **services.settings.identifier_types}.get(name)


def accept_signed(
    services: Services,
    model: str,
    identifiers: Sequence[Identifier],
    platform: str,
    platform_request_id: str,
    targets: Sequence[CallbackTarget],
) -> UUID:
    """Accept a request of a platform that signs its webhooks and has no API key.

    Raises:
        Unauthenticated: The platform's access was revoked.
    """
    with services.db.transaction() as session:
        caller = api_keys.external_caller(session, platform, ["submit"])
    if caller is None:
        raise Unauthenticated("The platform's access was revoked.")
    return accept_from_platform(services, model, identifiers, platform, platform_request_id, caller.id, targets)


def accept_from_platform(
    services: Services,
    model: str,
    identifiers: Sequence[Identifier],
    platform: str,
    platform_request_id: str,
    api_key_id: UUID,
    targets: Sequence[CallbackTarget],
) -> UUID:
    """Accept a platform's request and return our id. For each model the platform's own id makes it idempotent.

    Raises:
        Invalid: No identifier is of a type by which people are looked up here, or there are too many.
    """
    all_identities: list[Identity] = [
        {"type": kind, "format": "raw", "value": value} for kind, value in dict.fromkeys(identifiers)
    ]
    # If no identity is valid, all are kept, so that accept_request names the error.
    identities = [identity for identity in all_identities if _is_identity(identity)] or all_identities
    if not identities:
        raise Invalid("An identifier by which people are looked up here is needed.", field="identifiers")
    if len(identities) > MAX_IDENTITIES:
        raise Invalid(f"A request names {MAX_IDENTITIES} identifiers of one person at most.", field="identifiers")
    submission = Submission(
        model, callbacks=targets, subject={"identities": identities, "names": []}, columns={"dialect": platform}
    )
    idempotency_key = json.dumps([platform, model, platform_request_id])
    return accept_request(services, submission, api_key_id, idempotency_key).request.id


def _is_identity(identity: Identity) -> bool:
    """Whether the value can be of the identity's type."""
    try:
        normalise(identity["type"], identity["value"])
    except NotAnIdentity:
        return False
    return True
