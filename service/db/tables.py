"""The tables. Personal data of a request is in `bytea` columns, sealed with the request's own data key."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.audit.manifest import FileEntry
from service.db.base import Base
from service.db.columns import JobReportColumn, MetricsColumn
from service.domain.json_types import JsonObject
from service.domain.reference_texts import ReferenceTexts
from service.domain.report import JobReport, VersionMetrics
from service.domain.subject import Resolution

PENDING = "status = 'pending' AND hold IS NULL"
PENDING_ORDER = ("model_id", "api_key_id", "due_at", "seq")
FULFILLED = "version IS NOT NULL"
CAME_BACK = "came_back_from IS NOT NULL"
SPLIT = "split_job_id IS NOT NULL"
HELD = "hold IS NOT NULL"
DUE_REQUEST = "resolved_at IS NULL AND status NOT IN ('completed', 'not_memorised', 'cancelled', 'rejected')"
REFERENCED = "reference_hash IS NOT NULL"
ACTIVE_JOB = "stage NOT IN ('done', 'quarantined')"
MEMORISED = literal_column("(report -> 'memorised')", JSONB()).label("memorised")


class ApiKey(Base):
    """An API key's hash and scopes. The key itself is shown once and stored nowhere."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class Model(Base):
    """A registered model. Its versions are numbered from 0, the registered base."""

    __tablename__ = "models"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    policy: Mapped[JsonObject]
    policy_version: Mapped[int] = mapped_column(server_default="1", comment="of its policies, the one in force")
    retain: Mapped[ReferenceTexts] = mapped_column(JSONB, comment="sha256, records")
    heldout: Mapped[ReferenceTexts] = mapped_column(JSONB, comment="sha256, records, overlap")
    neighbours: Mapped[dict[str, ReferenceTexts]] = mapped_column(
        JSONB, default=dict, server_default="{}", comment="name -> sha256, records of texts that must not be lost"
    )
    base: Mapped[str | None] = mapped_column(comment="digest of the folder of the model that it was fine-tuned from")
    family: Mapped[str | None] = mapped_column(comment="the model_type of its configuration, if that is known")
    latest: Mapped[int] = mapped_column(Integer, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Version(Base):
    """A published release folder. The folder never changes; a folder without a row is garbage."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("versions.id"), index=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", use_alter=True), unique=True)
    digest: Mapped[str] = mapped_column(comment="sha256 of the manifest; the folder's name")
    files: Mapped[list[FileEntry]] = mapped_column(JSONB, comment="path, size, sha256 of every file")
    metrics: Mapped[VersionMetrics | None] = mapped_column(MetricsColumn, nullable=False)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    withdrawn_at: Mapped[datetime | None]
    withdrawn_reason: Mapped[str | None]

    model: Mapped[Model] = relationship()
    parent: Mapped["Version | None"] = relationship(remote_side="Version.id", lazy="joined", join_depth=1)


class Job(Base):
    """A batch of requests that is unlearned together. `owner`, `lease_expires_at` and `fence` say who may write."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_active_model", "model_id", unique=True, postgresql_where=text(ACTIVE_JOB)),
        Index("ix_jobs_model_seq", "model_id", "seq"),
        Index("ix_jobs_stage_seq", "stage", "seq"),
        Index(
            "ix_jobs_memorised", MEMORISED, postgresql_using="gin", postgresql_ops={MEMORISED.name: "jsonb_path_ops"}
        ),
        Index("ix_jobs_open_lease", "lease_expires_at", postgresql_where=text(ACTIVE_JOB)),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    parent_version_id: Mapped[UUID] = mapped_column(ForeignKey("versions.id"), index=True)
    split_of: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"), index=True, comment="a job that failed")
    stage: Mapped[str] = mapped_column(server_default="queued")
    outcome: Mapped[str | None]
    reason: Mapped[str | None]
    policy: Mapped[JsonObject] = mapped_column(comment="the model's policy when the batch was sealed")
    owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0", comment="since the last progress; a lost worker's is not")
    losses: Mapped[int] = mapped_column(server_default="0", comment="workers lost since the last progress")
    steps: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="counts progress, for the stall watch")
    outgrew: Mapped[int | None] = mapped_column(BigInteger, comment="bytes of the largest slot that was too small")
    progress: Mapped[float] = mapped_column(Float, server_default="0")
    epoch: Mapped[int] = mapped_column(server_default="0")
    metrics: Mapped[JsonObject] = mapped_column(server_default=text("'{}'::jsonb"))
    report: Mapped[JobReport | None] = mapped_column(JobReportColumn, comment="aggregates and verdicts by request")
    thresholds_index: Mapped[int | None] = mapped_column(BigInteger, comment="their entry in the log")
    progress_at: Mapped[datetime] = mapped_column(server_default=func.now())
    woken_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None] = mapped_column(comment="back-off after a failed attempt")
    traceparent: Mapped[str | None] = mapped_column(comment="W3C Trace Context")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    model: Mapped[Model] = relationship()
    parent_version: Mapped[Version] = relationship(foreign_keys=[parent_version_id])
    version: Mapped[Version | None] = relationship(foreign_keys=[Version.job_id], viewonly=True)


class KeyEpoch(Base):
    """A period in which data keys are wrapped under one key; see `privacy.epochs`. The key is not in the database."""

    __tablename__ = "key_epochs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    has_purged: Mapped[bool] = mapped_column(server_default="false", comment="so the key is to be destroyed")
    is_target: Mapped[bool] = mapped_column(server_default="false", comment="data keys are being moved to it")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DeletionRequest(Base):
    """One person's request. Everything that could identify the person is sealed."""

    __tablename__ = "deletion_requests"
    __table_args__ = (
        UniqueConstraint("api_key_id", "idempotency_hash"),
        Index("ix_deletion_requests_pending", *PENDING_ORDER, postgresql_where=text(PENDING)),
        Index("ix_deletion_requests_pending_due", "model_id", "due_at", postgresql_where=text(PENDING)),
        Index("ix_deletion_requests_model_version", "model_id", "version", postgresql_where=text(FULFILLED)),
        Index("ix_deletion_requests_came_back", "model_id", "came_back_from", postgresql_where=text(CAME_BACK)),
        Index("ix_deletion_requests_split", "split_job_id", "split_part", postgresql_where=text(SPLIT)),
        Index("ix_deletion_requests_due", "due_at", postgresql_where=text(DUE_REQUEST)),
        Index("ix_deletion_requests_kept", "finished_at", postgresql_where=text("wrapped_key IS NOT NULL")),
        Index("ix_deletion_requests_model_seq", "model_id", "seq"),
        Index("ix_deletion_requests_status_seq", "status", "seq"),
        Index("ix_deletion_requests_api_key_id_seq", "api_key_id", "seq"),
        Index("ix_deletion_requests_due_at", "due_at"),
        Index("ix_deletion_requests_job_due", "job_id", "due_at"),
        Index("ix_deletion_requests_received_at", "received_at"),
        Index("ix_deletion_requests_key_epoch", "key_epoch", postgresql_where=text("key_epoch IS NOT NULL")),
        Index("ix_deletion_requests_held", "hold", "due_at", postgresql_where=text(HELD)),
        Index("ix_deletion_requests_reference", "reference_hash", "seq", postgresql_where=text(REFERENCED)),
        CheckConstraint("records_count >= 0", name="counts_records"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    api_key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    status: Mapped[str] = mapped_column(server_default="pending")
    regulation: Mapped[str]
    received_at: Mapped[datetime]
    due_at: Mapped[datetime]
    accepted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    records_count: Mapped[int]
    ref: Mapped[str] = mapped_column(unique=True, comment="random; the only name that leaves the service")
    commitment: Mapped[bytes] = mapped_column(comment="request leaf over the records' commitments")
    supplements: Mapped[str | None] = mapped_column(comment="ref of a request whose texts were submitted again")
    wrapped_key: Mapped[bytes | None] = mapped_column(comment="data key, wrapped; purge destroys it")
    key_epoch: Mapped[UUID | None] = mapped_column(ForeignKey("key_epochs.id"), comment="whose key wraps the data key")
    subject_ref: Mapped[bytes | None] = mapped_column(comment="sealed")
    reference: Mapped[bytes | None] = mapped_column(comment="sealed: the submitter's case number")
    reference_hash: Mapped[bytes | None] = mapped_column(comment="keyed hash of API key and reference, to find it")
    callback_url: Mapped[bytes | None] = mapped_column(comment="sealed; one, or JSON of several with their tokens")
    probes: Mapped[bytes | None] = mapped_column(
        deferred=True, comment="sealed: prompts that must not bring out a secret, as JSON"
    )
    callbacks: Mapped[int] = mapped_column(server_default="0", comment="how many they are")
    callback_lanes: Mapped[list[int] | None] = mapped_column(comment="of each target; see Outbox.lane")
    dialect: Mapped[str | None] = mapped_column(comment="in which they are told")
    subject_request_id: Mapped[UUID | None] = mapped_column(unique=True, comment="OpenDSR's name of the request")
    subject: Mapped[bytes | None] = mapped_column(comment="sealed: identities and names, behind their nonce")
    hold: Mapped[str | None] = mapped_column(comment="why it may not be batched: resolve, approval")
    resolution: Mapped[Resolution | None] = mapped_column(JSONB, comment="numbers of index records, where was searched")
    results_count: Mapped[int | None] = mapped_column(comment="records that were found by the subject")
    searched_at: Mapped[datetime | None] = mapped_column(comment="the last search's end")
    idempotency_hash: Mapped[bytes | None] = mapped_column(comment="keyed hash of the Idempotency-Key")
    body_hash: Mapped[bytes] = mapped_column(comment="keyed hash of the body")
    verdict: Mapped[str | None]
    reason: Mapped[str | None]
    version: Mapped[int | None]
    came_back_from: Mapped[int | None] = mapped_column(comment="the version that had fulfilled it before a recheck")
    split_job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"), comment="the failed job it was split from")
    split_part: Mapped[int | None] = mapped_column(comment="requests of one part form the next job")
    extended_at: Mapped[datetime | None]
    extension_reason: Mapped[str | None]
    resolved_at: Mapped[datetime | None]
    resolved_reason: Mapped[str | None] = mapped_column(comment="how a failed request was dealt with")
    resolved_by: Mapped[UUID | None] = mapped_column(comment="the API key that resolved it")
    traceparent: Mapped[str | None] = mapped_column(comment="W3C Trace Context")

    model: Mapped[Model] = relationship()
    records: Mapped[list["Record"]] = relationship(order_by="Record.position", passive_deletes=True)


class Record(Base):
    """One text of a request, sealed together with the nonce of its commitment."""

    __tablename__ = "records"

    request_id: Mapped[UUID] = mapped_column(ForeignKey("deletion_requests.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    sealed: Mapped[bytes]


class JobEvent(Base):
    """An event of a job, for Server-Sent Events with `Last-Event-ID`."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str]
    data: Mapped[dict[str, object]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Certificate(Base):
    """The signed statement about a job, passed or failed; one per job."""

    __tablename__ = "certificates"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    envelope: Mapped[bytes] = mapped_column(comment="the DSSE envelope, exactly as published")
    digest: Mapped[str]
    overall: Mapped[str]
    log_index: Mapped[int | None] = mapped_column(BigInteger, comment="its entry in the log")
    proof: Mapped[str | None] = mapped_column(comment="the proof, once it is made")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outbox(Base):
    """A callback or alert to be sent; written in the transaction that changes the request's status."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_due", "api_key_id", "next_at", postgresql_where=text("delivered_at IS NULL")),
        Index("ix_outbox_lane", "lane", "next_at", postgresql_where=text("delivered_at IS NULL")),
        Index("ix_outbox_claimed", "api_key_id", "claimed_until", postgresql_where=text("claimed_until IS NOT NULL")),
        Index("ix_outbox_delivered_at", "delivered_at", postgresql_where=text("delivered_at IS NOT NULL")),
        Index("uq_outbox_alerts", "request_id", "status", unique=True, postgresql_where=text("target < 0")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    request_id: Mapped[UUID] = mapped_column(ForeignKey("deletion_requests.id"), index=True)
    status: Mapped[str]
    target: Mapped[int] = mapped_column(server_default="0", comment="which of the request's; below 0: an alert")
    api_key_id: Mapped[UUID | None] = mapped_column(comment="the request's; null: an alert")
    lane: Mapped[int | None] = mapped_column(BigInteger, comment="keyed hash of API key and host; 0: the operator's")
    claimed_until: Mapped[datetime | None] = mapped_column(comment="end of the last attempt, or its latest end")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime | None] = mapped_column(server_default=func.now(), comment="null: given up, or not sent")
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
