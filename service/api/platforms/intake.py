"""What the webhooks of privacy platforms share: identifiers in, an accepted request out. The same again gives the same."""

import json
from collections.abc import Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Path
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from service.bootstrap import Services
from service.callbacks.dialects import CallbackTarget
from service.db import api_keys
from service.domain.errors import Invalid, Unauthenticated
from service.steps.path.request import Submission, accept_request
from service.subjects.identifiers import NotAnIdentity, normalised

IDENTITY_TYPE_BY_NAME = {"email": "email", "phone": "phone", "phone_number": "phone", "phoneNumber": "phone"}
ModelName = Annotated[str, Path(max_length=63, description="which model is unlearned")]
Identifier = tuple[str, str]  # identity type, value


class PlatformBody(BaseModel):
    """What a platform sends: members that are not named are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)


Body = TypeVar("Body", bound=PlatformBody)


def parse_signed(kind: type[Body], raw: bytes) -> Body:
    """A body that was read before it was parsed, because its signature is over the bytes.

    Raises:
        RequestValidationError: As FastAPI raises it for a body that it parses.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def identity_type(services: Services, name: str) -> str | None:
    """The identity type of a platform's identifier by its name; None if people are not found by it here."""
    return {**IDENTITY_TYPE_BY_NAME, **services.settings.identifier_types}.get(name)


def accept_signed(
    services: Services,
    model: str,
    identifiers: Sequence[Identifier],
    platform: str,
    name: str,
    targets: Sequence[CallbackTarget],
) -> UUID:
    """Accept a request of a platform that signs instead of holding an API key.

    Raises:
        Unauthenticated: The platform's API key was revoked.
    """
    with services.db.transaction() as session:
        caller = api_keys.external_caller(session, platform, ["submit"])
    if caller is None:
        raise Unauthenticated("The platform's access was revoked.")
    return accept_from_platform(services, model, identifiers, platform, name, caller.id, targets)


def accept_from_platform(
    services: Services,
    model: str,
    identifiers: Sequence[Identifier],
    platform: str,
    name: str,
    api_key_id: UUID,
    targets: Sequence[CallbackTarget],
) -> UUID:
    """Accept a platform's request under the platform's own name for it; returns our id.

    Raises:
        Invalid: There is no identifier that people are found by here.
    """
    listed = [{"type": kind, "format": "raw", "value": value} for kind, value in dict.fromkeys(identifiers)]
    identities = [identity for identity in listed if _is_identity(identity)] or listed  # all wrong: accept_request says
    if not identities:
        raise Invalid("An identifier that people are found by here is needed.", field="identifiers")
    submission = Submission(
        model, callbacks=targets, subject={"identities": identities, "names": []}, columns={"dialect": platform}
    )
    return accept_request(services, submission, api_key_id, json.dumps([platform, name])).request.id


def _is_identity(identity: dict[str, str]) -> bool:
    """Whether a value can be of its type."""
    try:
        normalised(identity["type"], identity["value"])
    except NotAnIdentity:
        return False
    return True
