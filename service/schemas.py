"""What goes over HTTP, in both directions."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

IdentityType = Literal[
    "controller_customer_id", "email", "phone", "android_advertising_id", "android_id", "fire_advertising_id",
    "ios_advertising_id", "ios_vendor_id", "microsoft_advertising_id", "microsoft_publisher_id", "roku_publisher_id",
    "roku_advertising_id",
]  # fmt: skip
IDENTITY_TYPES = get_args(IdentityType)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Item = TypeVar("Item")


def _encodable(value: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no UTF-8 text holds."""
    if "\0" in value:
        raise ValueError("contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: a lone surrogate") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]


def _possible(path: str) -> str:
    if any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError("a name in it is longer than 255 bytes")
    return path


ServerPath = Annotated[Text, StringConstraints(min_length=1, max_length=4096), AfterValidator(_possible)]


class In(BaseModel):
    """Input: unknown fields are refused, and errors never repeat what was sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # whole epochs over every sequence, nothing left out, nothing shrunk, the published code's eps
        "skip_passed": False, "min_epoch_steps": 1, "epoch_checks": 1, "reserve": 0.0, "shrink": False,
        "fisher_absolute_eps": 1e-5,
    },
}  # fmt: skip


class Policy(In):
    """How a model is unlearned; every field has a default (METHOD, INTERFACES)."""

    model_config = ConfigDict(strict=True)

    preset: Literal["paper"] | None = Field(None, description="other defaults for some fields")
    max_batch_records: int = Field(32, ge=1, le=10_000)
    max_wait_seconds: float | None = Field(None, ge=0, description="default: the service's setting")
    approvals: int = Field(0, ge=0, le=2, description="keys that must approve a request before it is batched")
    rank: int = Field(16, ge=1, le=512)
    alpha: float | None = Field(None, gt=0, description="default: 2 x rank")
    learning_rate: float = Field(2e-4, gt=0, le=1)
    max_epochs: int = Field(20, ge=1, le=1000)
    min_epoch_steps: int = Field(4, ge=1, le=1000)
    batch_size: int = Field(8, ge=1, le=1024)
    retain_batch_size: int | None = Field(None, ge=1, le=1024, description="default: batch_size")
    skip_passed: bool = Field(True, description="leave a sequence out of training once its MA passes")
    epoch_checks: int = Field(4, ge=1, le=1000, description="times an epoch that MA may stop training")
    reserve: float = Field(0.005, ge=0, le=0.5, description="MA to reach below its limit")
    shrink: bool = Field(True, description="apply the least share of the change that still passes")
    margin: float = Field(1.0, ge=-1, le=1)
    loss: Literal["ihl", "gd", "ga"] = "ihl"
    init: Literal["fila", "lora"] = "fila"
    target_modules: list[Text] | None = None
    retain_weight: float = Field(1.0, ge=0)
    fisher_eps: float = Field(0.1, gt=0)
    fisher_absolute_eps: float | None = Field(None, gt=0, description="default: relative, fisher_eps")
    fisher_sequences: int = Field(64, ge=1)
    seed: int = Field(0, ge=0, le=2**32 - 1)
    max_perplexity_ratio: float = Field(1.25, gt=0)
    el_n: int = Field(10, ge=1, le=100)
    sequence_length: int = Field(200, ge=8, le=32_768)
    heldout_sequences: int = Field(64, ge=20, le=10_000)
    utility_sequences: int = Field(32, ge=1, le=10_000)
    el_sample: int = Field(4, ge=1)
    row_budget: int = Field(256, ge=1)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    train_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_activations: bool = Field(False, description="less memory in training for a third more time")

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        """Fields that are named win over the preset's."""
        preset = values.get("preset") if isinstance(values, dict) else None
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values


class ModelIn(In):
    """Register a model folder or hub id as version 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "assistant", "path": "/models/assistant", "retain_path": "/data/retain.jsonl",
                    "heldout_path": "/data/heldout.jsonl", "policy": {"max_perplexity_ratio": 1.1},
                }
            ]
        }
    )  # fmt: skip
    name: Name
    path: ServerPath = Field(description="a Hugging Face folder on the server, or a hub id")
    retain_path: ServerPath = Field(description="JSONL or CSV with `text`, or plain lines")
    heldout_path: ServerPath = Field(description="texts the model has never seen; 20 or more")
    policy: Policy = Policy()


class ModelOut(BaseModel):
    """A registered model."""

    name: str
    latest: int
    policy: Policy
    retain_records: int
    heldout_records: int
    created_at: datetime


class RecordIn(In):
    """One text of the person, as it may stand in training data."""

    text: Text


class ResubmissionIn(In):
    """Texts of an earlier request of one's own, to be tested again on the newest version."""

    ref: str = Field(pattern=r"^[0-9a-f]{32}$", description="the earlier request's, from its receipt")
    nonces: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        min_length=1, description="of its records, in order, from its receipt"
    )


class IdentityIn(In):
    """Something that a person is known by, as OpenDSR names it; hashed: of the value in lower case, phones as E.164."""

    type: IdentityType
    format: Literal["raw", "sha1", "md5", "sha256"] = "raw"
    value: Text = Field(min_length=1, max_length=500)


class SubjectIn(In):
    """The person, to be looked up in the model's corpora; stored sealed."""

    identities: list[IdentityIn] = Field([], max_length=50)
    names: list[Annotated[Text, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=10, description="what a name alone finds waits for approval"
    )

    @model_validator(mode="after")
    def _names_somebody(self) -> "SubjectIn":
        if not self.identities and not self.names:
            raise ValueError("an identity or a name is needed")
        return self


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
    subject: SubjectIn | None = Field(None, description="whose texts to find and unlearn; see docs/subjects.md")
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


class Searched(BaseModel):
    """A corpus in which a subject was looked up."""

    corpus: str
    records: int


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


class ExtensionIn(In):
    """Why a deadline is extended."""

    reason: Literal["complexity", "number_of_requests", "reasonably_necessary"]


class ApprovalIn(In):
    """What of its matches a request is approved with."""

    matches: list[int] | None = Field(None, max_length=10_000, description="`match` numbers; default: all of them")


class RefusalIn(In):
    """Why a request is refused."""

    reason: Literal["not_the_subject", "identity_not_proven", "not_covered", "other"]


class MatchOut(BaseModel):
    """Something that a request would unlearn."""

    match: int | None = Field(description="null: submitted as a text")
    kind: Literal["identifier", "near_copy", "similar", "name", "submitted"]
    text: str = Field(description="its beginning")


class Preview(BaseModel):
    """What a request would match."""

    model: str
    counts: dict[str, int] = Field(
        description="by what records are found: identifier, near_copy, similar, name; and form_letter, left out"
    )
    searched: list[Searched]
    needs_approval: bool
    due_at: datetime = Field(description="if it were submitted now")
    batch: str = Field(description="when a job would begin with it")
    matches: list[MatchOut] | None = Field(description="for keys with the scope approve alone")


class CorpusIn(In):
    """Register training data of a model, to look people up in; it stays where it is."""

    name: Name
    path: ServerPath = Field(description="a file or folder on the server, absolute")
    form: Literal["jsonl", "csv", "parquet", "lines", "folder"] | None = Field(None, description="default: by the path")
    text_column: Text = Field("text", min_length=1, max_length=200)
    columns: dict[Annotated[Text, Field(max_length=200)], IdentityType] = Field(
        {}, max_length=50, description="columns that hold identifiers, and of which type"
    )
    phone_region: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(
        None, description="country of telephone numbers without a prefix"
    )


class CorpusOut(BaseModel):
    """A corpus, and how far it is indexed."""

    name: str
    form: str
    state: Literal["indexing", "ready", "failed"]
    reason: str | None
    records: int
    progress: float
    created_at: datetime
    indexed_at: datetime | None


class RequestAccepted(RequestOut):
    """The answer to a submission; the receipt is given here only."""

    receipt: Receipt


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


class FileOut(BaseModel):
    """A file of a release folder."""

    path: str
    size: int
    sha256: str


class VersionOut(BaseModel):
    """A published version."""

    model: str
    version: int
    parent: int | None
    job_id: UUID | None
    created_at: datetime
    digest: str
    metrics: dict[str, Any]
    files: list[FileOut]
    withdrawn_at: datetime | None
    withdrawn_reason: str | None


class WithdrawalIn(In):
    """Why a version is handed out no more."""

    reason: Literal["superseded", "faulty", "revoked"]


class DownloadOut(BaseModel):
    """An API key that fetched files of a version."""

    api_key_id: UUID
    name: str
    first_at: datetime


class Superseded(BaseModel):
    """That a version was replaced: whoever uses it should take the newer one."""

    version: int
    superseded_by: int
    at: datetime
    certificate: str = Field(description="sha256 of the newer version's certificate")


class KeyIn(In):
    """Make an API key."""

    name: Text = Field(min_length=1, max_length=100)
    scopes: list[Literal["submit", "read", "download", "audit", "approve", "admin"]] = Field(min_length=1)


class KeyOut(BaseModel):
    """An API key without its secret."""

    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class KeyCreated(KeyOut):
    """The answer to making a key: the secret, this once."""

    key: str
    webhook_secret: str = Field(description="callbacks for its requests are signed with it (Standard Webhooks)")


class WebhookSecret(BaseModel):
    """What a receiver of callbacks checks their signatures with."""

    webhook_secret: str


class Listing(BaseModel, Generic[Item]):
    """A page."""

    items: list[Item]
    next_cursor: str | None


class Problem(BaseModel):
    """RFC 9457; `errors` names each field that is wrong and never repeats what was sent."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, str]] | None = None


class LogEntry(BaseModel):
    """An entry of the transparency log."""

    index: int
    entry: str = Field(description="base64 of the canonical JSON that is hashed")


class LogProof(BaseModel):
    """The hashes of an inclusion or consistency proof, in base64."""

    path: list[str]
