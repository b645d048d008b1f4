"""Bodies of the deletion request and job endpoints."""

import re
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from service.domain.saying import says
from service.schemas.base import CallbackUrl, Input, LongList, Problem, ShortList, Text
from service.schemas.subjects import Searched, SubjectIn

Regulation = Literal["gdpr", "ccpa", "other"]


class RecordIn(Input):
    """One text of the person, as it may appear in training data."""

    text: Text


class ProbeIn(Input):
    """A prompt that must not bring out a secret: no answer, greedy or sampled, may say it."""

    prompt: Text = Field(min_length=1, max_length=2000)
    secret: Text = Field(min_length=1, max_length=500)

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("empty, or only white space")
        return prompt

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: str, info: ValidationInfo) -> str:
        """Refuse a secret without a letter or digit, and one that its own prompt says: an answer may repeat that."""
        if not any(map(str.isalnum, secret)):
            raise ValueError("no letter and no digit")
        prompt, digits = str(info.data.get("prompt", "")), re.sub(r"\D", "", secret)
        says_number = len(digits) > 4 and digits in re.sub(r"\D", "", prompt)
        if says_number or says(prompt, secret):
            raise ValueError("the prompt says it already")
        return secret


class ResubmissionIn(Input):
    """An earlier request of the submitter, whose texts are to be tested again on the newest version."""

    ref: str = Field(pattern=r"^[0-9a-f]{32}$", description="ref of the earlier request, from its receipt")
    nonces: LongList[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        min_length=1, description="nonces of its records, in order, from its receipt"
    )


class RequestIn(Input):
    """A deletion request: texts, a person to look up, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "assistant",
                    "regulation": "gdpr",
                    "received_at": "2026-11-24T09:30:00Z",
                    "records": [{"text": "Maria Example lives at 12 Sample Street and answers to 555-0100."}],
                }
            ]
        }
    )
    model: Text = Field(min_length=1, max_length=63)
    subject: SubjectIn | None = Field(
        None, description="the person whose texts are found and unlearned; see docs/guides/subjects.md"
    )
    records: LongList[RecordIn] = Field([], validate_default=True, description="texts to unlearn")
    probes: ShortList[ProbeIn] = Field(
        [], description="prompts that must not bring out a secret, beside those made of the records"
    )
    subject_ref: Text | None = Field(None, max_length=500, description="your own name of the person; stored sealed")
    reference: Text | None = Field(
        None, min_length=1, max_length=200, description="your case number; stored sealed, returned, and a filter"
    )
    regulation: Regulation = "gdpr"
    received_at: AwareDatetime | None = Field(
        None, description="when the controller received the request; default: now"
    )
    callback_url: CallbackUrl | None = Field(None, description="gets a POST when the request ends; stored sealed")
    resubmits: ResubmissionIn | None = Field(
        None,
        description="the earlier request that had the same records; its texts may be purged. The certificate names it.",
    )

    @field_validator("records")
    @classmethod
    def _check_records_or_subject(cls, records: list[RecordIn], info: ValidationInfo) -> list[RecordIn]:
        """Refuse a request with neither. An invalid subject is absent from `info.data` and has an error already."""
        if not records and info.data.get("subject", ...) is None:
            raise ValueError("records are needed, or a subject")
        return records

    @field_validator("resubmits")
    @classmethod
    def _check_no_subject(cls, resubmits: ResubmissionIn | None, info: ValidationInfo) -> ResubmissionIn | None:
        if resubmits is not None and info.data.get("subject") is not None:
            raise ValueError("for records alone, without a subject")
        return resubmits


class BulkRequestIn(RequestIn):
    """A line of a bulk submission: a deletion request with its idempotency key."""

    idempotency_key: Text | None = Field(
        None, min_length=1, max_length=255, description="as the header Idempotency-Key of a single request"
    )


class RecordOpening(BaseModel):
    """The opening of a record's commitment. With the text it proves that the text was in this request."""

    commitment: str = Field(description="hex, SHA-256 over domain, nonce, length and text")
    nonce: str = Field(description="hex; to be kept with the text")


class Receipt(BaseModel):
    """The opening of the request's commitment, for `unlearnd verify-record`."""

    ref: str = Field(description="name of the request in certificates")
    commitment: str
    records: list[RecordOpening]
    signed: dict[str, object] = Field(description="the same with the deadline, in a signed DSSE envelope")


class RequestOut(BaseModel):
    """A deletion request and its state."""

    id: UUID
    status: str
    model: str
    job_id: UUID | None
    verdict: str | None = Field(
        description="PASS, FAIL, NOT_TESTED, or NOT_PUBLISHED: it passed its own tests, but its job published nothing"
    )
    version: int | None
    reason: str | None
    regulation: str
    records: int = Field(
        description="number of texts; those that a search has found count only for the scopes approve and audit"
    )
    ref: str
    reference: str | None = Field(description="the submitter's case number; null once purged")
    received_at: datetime
    due_at: datetime
    accepted_at: datetime
    finished_at: datetime | None
    extension_reason: str | None
    resolved_at: datetime | None = Field(
        description="when an operator resolved the failed request; until then it is due"
    )
    resolved_reason: str | None
    waits_for: Literal["resolve", "approval"] | None = Field(description="why a pending request is not batched yet")
    results_count: int | None = Field(
        description="number of records that the search for the subject matched; the scopes approve and audit see it,"
        " others see 0, or null for any other number"
    )
    searched: list[Searched] | None = Field(description="corpora in which the subject was looked up; null once purged")


class DecisionOut(BaseModel):
    """The decision of an API key on a request that needs approval."""

    decision: Literal["approved", "rejected"]
    api_key_id: UUID
    name: str
    reason: str | None
    at: datetime


class CallbackOut(BaseModel):
    """A callback about the request, to one of its addresses."""

    status: str = Field(description="the request's status, which it tells")
    attempts: int
    delivered_at: datetime | None
    given_up: bool


class RequestDetail(RequestOut):
    """A deletion request, its state, who decided on it, and who was sent a callback."""

    purged: bool = Field(description="its texts are gone for good")
    searched_at: datetime | None = Field(description="when the subject was last looked up")
    callbacks: list[CallbackOut] = Field(description="oldest first; at most a hundred")
    decisions: list[DecisionOut] | None = Field(
        description="approvals of its present records, and its rejection; null without approve, audit or admin"
    )


class RequestAccepted(RequestOut):
    """The answer to a submission. Only this answer has the receipt."""

    receipt: Receipt


class BulkResult(BaseModel):
    """The result of a line of a bulk submission: `id` and `receipt`, or `problem`."""

    index: int
    status: int
    id: UUID | None = None
    receipt: Receipt | None = None
    problem: Problem | None = None


class ExtensionIn(Input):
    """The reason for which a deadline is extended."""

    reason: Literal["complexity", "number_of_requests", "reasonably_necessary"]


CancelReason = Literal["withdrawn", "duplicate", "mistake", "other"]
RetryReason = Literal["cause_removed", "policy_changed", "other"]


class ResolutionIn(Input):
    """How a failed request was dealt with."""

    reason: Literal["handled_otherwise", "withdrawn", "not_covered", "other"]


class JobOut(BaseModel):
    """A job, its progress and its metrics so far."""

    id: UUID
    model: str
    stage: str
    outcome: str | None
    reason: str | None
    progress: float
    epoch: int
    attempts: int
    losses: int
    parent: int
    version: int | None
    metrics: dict[str, object]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobStep(BaseModel):
    """A stage that a job has come to, an attempt that ended without it, or its end."""

    kind: Literal["stage", "retry", "done"]
    at: datetime
    stage: str | None
    outcome: str | None
    reason: str | None


class JobDetail(JobOut):
    """A job, with the stages and attempts that it went through."""

    steps: list[JobStep] = Field(description="oldest first; at most the newest two hundred")
