"""Deletion requests, and the jobs that they become part of."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AnyHttpUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from service.schemas.base import In, Text
from service.schemas.subjects import Searched, SubjectIn


class RecordIn(In):
    """One text of the person, as it may stand in training data."""

    text: Text


class ResubmissionIn(In):
    """Texts of an earlier request of one's own, to be tested again on the newest version."""

    ref: str = Field(pattern=r"^[0-9a-f]{32}$", description="the earlier request's, from its receipt")
    nonces: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        min_length=1, description="of its records, in order, from its receipt"
    )


class RequestIn(In):
    """A deletion request: texts, or a person to be looked up, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "assistant", "regulation": "gdpr", "received_at": "2026-11-24T09:30:00Z",
                    "records": [{"text": "Maria Example lives at 12 Sample Street and answers to 555-0100."}],
                }
            ]
        }
    )  # fmt: skip
    model: Text = Field(min_length=1, max_length=63)
    subject: SubjectIn | None = Field(None, description="whose texts to find and unlearn; see docs/guides/subjects.md")
    records: list[RecordIn] = Field([], validate_default=True, description="texts to unlearn")
    subject_ref: Text | None = Field(None, max_length=500, description="your own reference; stored sealed")
    regulation: Literal["gdpr", "ccpa", "other"] = "gdpr"
    received_at: AwareDatetime | None = Field(None, description="when the controller received it; default now")
    callback_url: AnyHttpUrl | None = Field(None, description="POSTed to when the request ends; stored sealed")
    resubmits: ResubmissionIn | None = Field(
        None, description="the records are those of an earlier request, whose texts may be purged; its record says so"
    )

    @field_validator("records")
    @classmethod
    def _asks_for_something(cls, records: list[RecordIn], info: ValidationInfo) -> list[RecordIn]:
        if not records and info.data.get("subject", ...) is None:
            raise ValueError("records are needed, or a subject")
        return records

    @field_validator("resubmits")
    @classmethod
    def _is_of_texts(cls, resubmits: ResubmissionIn | None, info: ValidationInfo) -> ResubmissionIn | None:
        if resubmits is not None and info.data.get("subject") is not None:
            raise ValueError("for records alone, without a subject")
        return resubmits


class RecordOpening(BaseModel):
    """What the submitter needs, with the text, to show later that it was in this request."""

    commitment: str = Field(description="hex, SHA-256 over domain, nonce, length and text")
    nonce: str = Field(description="hex; keep it with the text")


class Receipt(BaseModel):
    """The opening of the request's commitment, for `unlearnd verify-record`."""

    ref: str = Field(description="the request's name in certificates")
    commitment: str
    records: list[RecordOpening]
    signed: dict[str, Any] = Field(description="the same and the deadline, as a signed DSSE envelope")


class RequestOut(BaseModel):
    """A deletion request and where it stands."""

    id: UUID
    status: str
    model: str
    job_id: UUID | None
    verdict: str | None
    version: int | None
    reason: str | None
    regulation: str
    records: int
    ref: str
    received_at: datetime
    due_at: datetime
    accepted_at: datetime
    finished_at: datetime | None
    extension_reason: str | None
    waits_for: Literal["resolve", "approval"] | None = Field(description="why a pending request is not batched")
    results_count: int | None = Field(description="records that were found by the subject")
    searched: list[Searched] | None = Field(description="where the subject was looked up, until purged")


class RequestAccepted(RequestOut):
    """The answer to a submission; the receipt is given here only."""

    receipt: Receipt


class ExtensionIn(In):
    """Why a deadline is extended."""

    reason: Literal["complexity", "number_of_requests", "reasonably_necessary"]


class JobOut(BaseModel):
    """A job, its progress and its numbers so far."""

    id: UUID
    model: str
    stage: str
    outcome: str | None
    reason: str | None
    progress: float
    epoch: int
    attempts: int
    parent: int
    version: int | None
    metrics: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
