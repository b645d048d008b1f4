"""Bodies of OpenDSR 2.0 and OpenGDPR 1.0."""

import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from service.domain.subject import Identity
from service.schemas.base import CallbackUrl, Input, LongList, Name, ShortList, Text
from service.schemas.requests import RecordIn
from service.schemas.subjects import SubjectIn

UUID4 = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
RFC3339 = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")


class SubjectIdentity(BaseModel):
    """An identity of the person."""

    model_config = ConfigDict(hide_input_in_errors=True)
    identity_type: Text = Field(max_length=100)
    identity_value: Text = Field(max_length=500)
    identity_format: Text = Field(max_length=20)

    def to_identity(self) -> Identity:
        """The same identity with the field names of our own requests."""
        return {"type": self.identity_type, "format": self.identity_format, "value": self.identity_value}


class Extension(Input):
    """Our extension: the member of `extensions` named by the processor's domain."""

    model: Name | None = None
    records: LongList[RecordIn] = Field([])
    subject: SubjectIn | None = None


class DsrIn(BaseModel):
    """A request. Unknown members are ignored, as the specification demands."""

    model_config = ConfigDict(hide_input_in_errors=True)
    subject_request_id: str = Field(pattern=UUID4, description="a lower-case UUIDv4")
    subject_request_type: Literal["erasure"]
    submitted_time: AwareDatetime
    subject_identities: ShortList[SubjectIdentity] = Field([])
    api_version: str | None = Field(None, max_length=20)
    status_callback_urls: Annotated[ShortList[CallbackUrl], Field(max_length=10)] = Field([])
    extensions: dict[str, object] = Field({}, max_length=50)

    @field_validator("submitted_time", mode="before")
    @classmethod
    def _check_timestamp(cls, value: object) -> str:
        """Refuse numbers, which pydantic would take for seconds."""
        if not isinstance(value, str) or not RFC3339.match(value):
            raise ValueError("RFC 3339, as a string")
        return value


class OpenDsrIn(DsrIn):
    """A request in version 2, which names the regulation."""

    regulation: Literal["gdpr", "ccpa"]


class OpenGdprIn(DsrIn):
    """A request in version 1, which has one regulation."""

    regulation: Literal["gdpr"] = "gdpr"


class Discovery(BaseModel):
    """The identities and request types that this processor supports."""

    api_version: str
    supported_identities: list[dict[str, str]]
    supported_subject_request_types: list[str]
    processor_certificate: str


class Taken(BaseModel):
    """The receipt of a request."""

    controller_id: str
    expected_completion_time: str
    received_time: str
    encoded_request: str
    subject_request_id: str
    api_version: str


class Status(BaseModel):
    """The status of a request."""

    controller_id: str
    expected_completion_time: str
    subject_request_id: str
    request_status: Literal["pending", "in_progress", "completed", "cancelled"]
    api_version: str
    results_url: str | None = None
    results_count: int | None = None


class Cancelled(BaseModel):
    """A cancelled request, and when the cancellation was received."""

    controller_id: str
    subject_request_id: str
    received_time: str
    api_version: str


class DsrError(BaseModel):
    """An error in OpenDSR's form."""

    error: dict[str, object]
