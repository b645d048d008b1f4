"""Bodies of the model and version endpoints."""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from service.domain.attacks import ATTACK_NAMES, AttackName, Effect
from service.schemas.base import Input, LongList, Name, ServerPath, Text

PRESETS: dict[str, dict[str, object]] = {
    "paper": {  # one rate, whole epochs over every sequence, none left out, no shrinking, the eps of the published code
        "adaptive": False,
        "skip_passed": False,
        "min_epoch_steps": 1,
        "epoch_checks": 1,
        "reserve": 0.0,
        "shrink": False,
        "fisher_absolute_eps": 1e-5,
    },
}


QuantisedName: TypeAlias = Literal["int8", "int4", "q8_0", "q4_k_m"]
DEFAULT_ATTACKS: dict[AttackName, Effect] = {
    **dict.fromkeys(ATTACK_NAMES, "report"),
    "relearned": "off",  # it trains the model
}


class Policy(Input):
    """How a model is unlearned. Every field has a default (METHOD, INTERFACES)."""

    model_config = ConfigDict(strict=True)

    preset: Literal["paper"] | None = Field(None, description="changes the defaults of some fields")
    max_batch_records: int = Field(32, ge=1, le=10_000, description="of a job; a larger request has a job for itself")
    max_wait_seconds: float | None = Field(None, ge=0, description="default: UNLEARND_MAX_WAIT_SECONDS")
    serve_superseded: bool = Field(False, description="hand out versions that remember completed requests to all keys")
    approvals: int = Field(0, ge=0, le=2, description="API keys that must approve a request before it is batched")
    max_certain_matches: int = Field(
        200, ge=1, le=10_000, description="more records that match one person for certain need an approval"
    )
    max_certain_share: float = Field(
        0.01, gt=0, le=1, description="so does a larger share of one corpus' records, unless at most 20 of them match"
    )
    rank: int = Field(16, ge=1, le=512, description="16 grows with the forget set if `adaptive`")
    alpha: float | None = Field(None, gt=0, description="default: 2 x rank")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="of the first epoch")
    adaptive: bool = Field(True, description="find the rate and the rank, and hold the model near its parent")
    max_epochs: int = Field(20, ge=1, le=1000)
    min_epoch_steps: int = Field(8, ge=1, le=1000)
    batch_size: int = Field(8, ge=1, le=1024)
    retain_batch_size: int | None = Field(None, ge=1, le=1024, description="default: batch_size")
    skip_passed: bool = Field(True, description="stop training on a sequence once its MA passes")
    epoch_checks: int = Field(4, ge=1, le=1000, description="checks of MA in each epoch; each can stop training")
    reserve: float = Field(0.005, ge=0, le=0.5, description="how far below its threshold MA must fall in training")
    shrink: bool = Field(True, description="apply the smallest share of the change that still passes")
    margin: float = Field(1.0, ge=-1, le=1)
    loss: Literal["ihl", "gd", "ga", "kl", "wga", "undial", "npo", "simnpo", "altpo", "rmu", "distil"] = "ihl"
    init: Literal["fila", "pissa", "lora"] = "fila"
    target_modules: LongList[Annotated[Text, Field(max_length=200)]] | None = None
    retain_weight: float = Field(1.0, ge=0)
    fisher_eps: float = Field(0.1, gt=0)
    fisher_absolute_eps: float | None = Field(None, gt=0, description="absolute eps; default: relative, by fisher_eps")
    fisher_sequences: int = Field(64, ge=1)
    seed: int = Field(0, ge=0, le=2**32 - 1)
    max_request_sequences: int = Field(4096, ge=1, description="a request with more windows of text is rejected")
    max_perplexity_ratio: float = Field(1.25, gt=0, description="held-out perplexity after a job, relative to before")
    max_total_perplexity_ratio: float | None = Field(
        None, gt=0, description="the same, relative to version 0; default: 1.2 x max_perplexity_ratio"
    )
    max_neighbour_loss: float = Field(
        0.03, ge=0, description="MA, and log-likelihood a token, that retain text and neighbours may lose"
    )
    attacks: dict[AttackName, Effect] = Field(
        default_factory=lambda: dict(DEFAULT_ATTACKS),
        max_length=len(DEFAULT_ATTACKS),
        description="an attack that blocks keeps versions unpublished",
    )
    quantise: list[QuantisedName] = Field(
        default_factory=list, max_length=4, description="quantised copies of a version that are tested, too"
    )
    distil_steps: int = Field(360, ge=20, le=100_000)
    distil_rank: int = Field(64, ge=1, le=512)
    distil_learning_rate: float | None = Field(None, gt=0, le=1, description="default: 0.4 / hidden size")
    token_weight: float = Field(0.3, ge=0, description="of the true token's likelihood beside the divergence")
    divergence_weight: float = Field(6.0, ge=0, description="of the divergence from the parent on retain text")
    own_samples: int | None = Field(
        None, ge=16, le=10_000, description="of the parent, for distil (default 2048), adaptive ihl and altpo (256)"
    )
    least_strength: float = Field(0.3, ge=0, le=1, description="the least share of the change that must suffice, too")
    relearn_steps: int = Field(8, ge=0, le=100, description="most steps of fine-tuning that training looks ahead")
    probe_samples: int = Field(20, ge=0, le=1000, description="samples of each probe, beside a greedy answer")
    el_n: int = Field(10, ge=1, le=100)
    sequence_length: int = Field(200, ge=8, le=32_768)
    heldout_sequences: int = Field(64, ge=20, le=10_000)
    utility_sequences: int = Field(32, ge=1, le=10_000)
    el_sample: int = Field(4, ge=1)
    earlier_sample: int = Field(64, ge=2)
    recheck_days: float | None = Field(
        30, gt=0, le=3650, description="how often all earlier requests are measured in full; null: never"
    )
    row_budget: int = Field(256, ge=1)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    train_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_activations: bool = Field(False, description="use less memory in training, for a third more time")
    keep: int | None = Field(
        None, ge=0, le=100_000, description="newest versions that keep their weights on the disk; default: all do"
    )
    devices: int = Field(1, ge=1, le=64, description="processes of a worker that may share the weights of one job")
    sharding: Literal["auto", "always"] = Field("auto", description="share them if one device is too small, or always")

    @field_validator("attacks")
    @classmethod
    def _complete(cls, attacks: dict[AttackName, Effect]) -> dict[AttackName, Effect]:
        """An attack that is not named has its default."""
        return DEFAULT_ATTACKS | attacks

    @field_validator("quantise")
    @classmethod
    def _each_once(cls, quantise: list[QuantisedName]) -> list[QuantisedName]:
        """The schemes in order, each once."""
        return sorted(set(quantise))

    @field_validator("devices")
    @classmethod
    def _one_reference(cls, devices: int, info: ValidationInfo) -> int:
        """A reference, which distillation trains, is not shared."""
        if devices > 1 and info.data.get("loss") == "distil":
            raise ValueError("loss distil runs on one device")
        return devices

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: object) -> object:
        """Fill in the preset's values. A field that is given wins over the preset."""
        if not isinstance(values, dict):
            return values
        preset = values.get("preset")
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values


class ModelIn(Input):
    """A model folder or hub id to register as version 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "assistant",
                    "path": "/models/assistant",
                    "retain_path": "/models/retain.jsonl",
                    "heldout_path": "/models/heldout.jsonl",
                    "policy": {"max_perplexity_ratio": 1.1},
                }
            ]
        }
    )
    name: Name
    path: ServerPath = Field(
        description="a Hugging Face folder on the server, in one of UNLEARND_MODEL_ROOTS; or a hub id"
    )
    retain_path: ServerPath = Field(
        description="JSONL or CSV with `text`, or plain lines; in one of UNLEARND_MODEL_ROOTS or UNLEARND_CORPUS_ROOTS"
    )
    heldout_path: ServerPath = Field(description="20 or more texts that the model has never seen")
    base_path: ServerPath | None = Field(
        None,
        description="its base, where `path` may lie; models of over 30 million parameters need it for `loss: distil`",
    )
    neighbour_paths: dict[Name, ServerPath] = Field(
        default_factory=dict,
        max_length=8,
        description="named files of texts, as `retain_path`: what is most like the forgotten in 1024 texts of each "
        "may lose no more than `max_neighbour_loss`; nothing is trained on them",
    )
    policy: Policy = Policy()


class ModelOut(BaseModel):
    """A registered model."""

    name: str
    latest: int
    policy: Policy
    policy_version: int
    retain_records: int
    heldout_records: int
    neighbour_records: dict[str, int] = Field(description="of each named file of neighbours")
    warnings: list[str] = Field(description="what is doubtful about it or its reference texts; empty if nothing is")
    family: str | None = Field(
        description="the `model_type` of its configuration; null if an older release registered it"
    )
    created_at: datetime


class PolicyIn(Input):
    """A new policy of a model, and the version of the policy that it replaces."""

    policy: Policy
    policy_version: int = Field(ge=1, lt=2**31, description="of the policy that the caller has seen")


class PolicyOut(BaseModel):
    """A policy that a model has or had."""

    policy_version: int
    policy: Policy
    at: datetime
    api_key_id: UUID | None = Field(description="who set it; null if a release before this record set it")


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
    metrics: dict[str, object]
    attacks: list[dict[str, object]]
    files: list[FileOut]
    withdrawn_at: datetime | None
    withdrawn_reason: str | None


class RecheckOut(BaseModel):
    """A measurement of all requests of a model that were unlearned and are in custody."""

    version: int = Field(description="the version that is measured")
    created_at: datetime
    finished_at: datetime | None
    outcome: Literal["passed", "reopened", "incomplete"] | None = Field(
        description="incomplete: some could not be measured, see `reasons`; null: it is under way"
    )
    requests: int = Field(description="in custody when it began")
    measured: int
    reopened: int = Field(description="requests that came back, and are pending again")
    shards: int = Field(description="parts that compute workers measure, while it is under way")
    shards_ended: int
    reasons: list[str] = Field(description="why parts were given up; codes")


class WithdrawalIn(Input):
    """Why a version is withdrawn."""

    reason: Literal["superseded", "faulty", "revoked"]
    reopen: bool = Field(False, description="withdraw it also if completed requests become open again")


class WithdrawalCost(BaseModel):
    """What it would cost to withdraw a version now."""

    latest: int | None = Field(description="the version that would be the newest; null: there is no other")
    reopened: int = Field(description="completed requests that would be open again")
    overdue: int = Field(description="those of them that are past their deadlines")
    purged: int = Field(description="those of them whose texts were purged; one is enough to forbid it")


class DownloadOut(BaseModel):
    """An API key that downloaded files of a version."""

    api_key_id: UUID
    name: str
    first_at: datetime


class Superseded(BaseModel):
    """A version and the newer version that replaced it."""

    version: int
    superseded_by: int
    at: datetime
    certificate: str = Field(description="sha256 of the newer version's certificate")
