"""Settings, read once at the edge. Each has an `UNLEARND_` variable. `unlearnd settings` lists them."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.audit.wording import problem_in
from service.domain.errors import CannotStart
from service.setting_types import BrokerUrl, BucketUrl, DatabaseUrl, Witness


def _check_wording(name: str) -> str:
    """Refuse a name whose wording a certificate may not contain."""
    problem = problem_in(name)
    if problem:
        raise ValueError(f"a certificate may not contain this name: {problem}")
    return name


def _check_url(url: str) -> str:
    """Refuse what is not the URL of a server or of a folder on it. A slash at its end is left out."""
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError("not an http or https URL")
    return url.rstrip("/")


def _check_prefix(path: str) -> str:
    """Refuse what is not the path of a folder."""
    if path and not (path.startswith("/") and path.endswith("/")):
        raise ValueError("it must begin and end with a slash")
    return path


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_distinct(secrets: dict[str, SecretStr]) -> dict[str, SecretStr]:
    """Refuse a secret that two models share: a webhook for one of them would be valid for the other."""
    if len({secret.get_secret_value() for secret in secrets.values()} - {""}) < len(secrets):
        raise ValueError("each model needs a secret of its own")
    return secrets


Scope = Literal["submit", "read", "preview", "download", "audit", "approve", "admin"]
SECRET_SETTINGS = (  # URLs that may hold a secret
    *("database_url", "owner_database_url", "api_database_url", "control_database_url", "compute_database_url"),
    "listen_database_url",
    *("broker_url", "alert_url"),
)


def _may_be_secret(name: str, value: object) -> bool:
    """Whether a setting is listed, or a URL with a user or a password."""
    return name in SECRET_SETTINGS or (isinstance(value, str) and "://" in value and "@" in value)


class Settings(BaseSettings):
    """An operator's settings. Durations are in seconds and sizes in bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="UNLEARND_", extra="ignore", hide_input_in_errors=True)

    database_url: DatabaseUrl = Field(
        "", description="postgresql://user:password@host/database; not the schema's owner"
    )
    owner_database_url: DatabaseUrl = Field(
        "", description="the same for the schema's owner; only `unlearnd migrate` uses it"
    )
    api_database_url: DatabaseUrl = Field("", description="login of the API, which `unlearnd migrate` makes from it")
    control_database_url: DatabaseUrl = Field("", description="the same for control workers")
    compute_database_url: DatabaseUrl = Field("", description="the same for compute workers")
    listen_database_url: DatabaseUrl = Field(
        "", description="of the API, where `database_url` leads to a transaction pooler: the server itself"
    )
    database_pooler: bool = Field(
        False, description="`database_url` leads to a transaction pooler; roles have the limits of sessions"
    )
    broker_url: BrokerUrl = Field("", description="redis://host:6379/0; Valkey or Redis")
    storage_dir: Path = Field(
        Path("storage"),
        description="shared by the API, control workers and compute workers; with a bucket, a folder of each machine",
    )
    storage_url: BucketUrl = Field(
        "", description="bucket for storage, such as s3://bucket/prefix; needs unlearnd[objects]; empty: the folder"
    )
    presign_seconds: int = Field(
        0, ge=0, le=604_800, description="for how long a bucket's URL of a file is valid; 0: the API sends every file"
    )
    keys_dir: Path = Field(
        Path("keys"), description="holds kek; for the API also receipt.pem; for control workers all signing keys"
    )
    model_roots: str = Field(
        "",
        description="folders, separated by `:`, in which models and their reference texts may be registered; "
        "empty: only hub ids can be registered",
    )
    corpus_roots: str = Field(
        "",
        description="folders, separated by `:`, in which corpora and reference texts may be registered; the same for "
        "the API and control workers",
    )
    private_dirs: str = Field(
        "",
        description="folders, separated by `:`, from which nothing is read for a model or corpus; the storage and the "
        "keys always belong to them",
    )
    kms_key_id: str = Field("", description="AWS KMS key that wraps data keys instead of `kek`; needs unlearnd[kms]")
    issuer: Annotated[str, AfterValidator(_check_wording)] = Field(
        "unlearnd", description="name in certificates; no personal data"
    )
    max_record_bytes: int = Field(65_536, description="largest text of one record, in UTF-8")
    max_records: int = Field(256, ge=1, le=10_000, description="most records in one deletion request")
    max_body_bytes: int = Field(8_388_608, description="largest request body")
    max_requests: int = Field(800, description="HTTP requests that an API process handles at once; more get a 503")
    key_requests: int = Field(
        10, ge=1, description="requests of one API key that a process works on at once; its others wait in line"
    )
    share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="largest part of a process's connections that one address may hold, and of its requests at once and"
        " its memory for bodies that one API key may hold",
    )
    trusted_proxies: list[IPvAnyNetwork] = Field(
        [], description='addresses of reverse proxies, whose X-Forwarded-For is believed, as JSON: ["10.2.0.7"]'
    )
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="port with /metrics alone, for which nobody needs a key; 0: none"
    )
    docs: bool | None = Field(None, description="whether there is a page /docs; default: only on a loopback address")
    console: bool = Field(True, description="whether there are pages under /console")
    console_seconds: float = Field(28_800, gt=0, description="how long somebody stays signed in to the console")
    console_api_keys: bool | None = Field(
        None,
        description="whether people may sign in to the console with an API key; default: unless there is an issuer",
    )
    oidc_issuer: str = Field(
        "", description="OpenID Connect provider with which people sign in to the console, its `issuer`"
    )
    oidc_client_id: str = Field("", description="the console's client id there")
    oidc_client_secret: SecretStr = Field(SecretStr(""), description="and its secret")
    oidc_scope: str = Field("openid profile groups", description="what the console asks for there")
    oidc_claim: str = Field("groups", description="the claim of the ID token that lists somebody's groups")
    oidc_roles: dict[str, list[Scope]] = Field(
        {}, description='scopes of each group, as JSON: {"privacy": ["read", "approve"]}'
    )
    max_connections: int = Field(2000, description="most open connections of an API process; it closes further ones")
    request_seconds: float = Field(
        30,
        description="a connection is closed if a request takes longer to arrive, or its answer is not read for so long",
    )
    max_wait_seconds: float = Field(
        900, description="default of a model's policy: how long a request waits for others until a job is made"
    )
    lease_seconds: float = Field(60, gt=0, description="a job without a heartbeat for this long can be claimed again")
    stall_seconds: float = Field(1800, description="a job without progress for this long loses its lease")
    sweep_seconds: float = Field(30, gt=0, description="how often the sweep looks for lost wake-ups and expired leases")
    collect_seconds: float = Field(600, gt=0, description="how often leftovers of ended jobs and crashes are removed")
    scrub_days: float = Field(7, gt=0, description="how often a release is hashed again; one in each `collect_seconds`")
    orphan_seconds: float = Field(86_400, description="how long a folder or epoch key stays that nothing refers to")
    retry_seconds: float = Field(15, description="delay after a failed attempt; each further one is four times longer")
    max_attempts: int = Field(3, ge=1, description="failures of a job in a row, without progress, that quarantine it")
    max_losses: int = Field(
        20, ge=1, description="workers that a job may lose in a row, without progress, before it is quarantined"
    )
    max_split_jobs: int = Field(64, description="most jobs that a failed job is split into while none of them passes")
    database_pool: int = Field(10, gt=0, description="database connections that a process keeps open")
    compute_sandbox: Literal["auto", "require", "off"] = Field(
        "auto",
        description="confine the compute child as far as the host can (auto), or start no compute worker on a host that"
        " cannot (require)",
    )
    custody_days: float = Field(90, description="days after its end that a request's texts are kept, unless it failed")
    failed_custody_days: float = Field(180, description="the same for a failed request, which may have to be retried")
    history_days: float = Field(400, gt=0, description="days that delivered callbacks and events of ended jobs stay")
    epochs_dir: Path = Field(
        Path(), description="the folder of epoch keys, shared by all processes; empty: `epochs` in UNLEARND_KEYS_DIR"
    )
    epoch_seconds: float = Field(86_400, description="how long a process wraps data keys under one epoch key")
    witnesses: list[Witness] = Field(
        [], description='who cosigns checkpoints of the log, as JSON: [{"url": "https://...", "key": "name+id+key"}]'
    )
    callback_seconds: float = Field(10, description="how long the receiver of a callback may take to answer")
    requests_per_minute: int = Field(30_000, description="limit of one API key, over all API processes; 0: no limit")
    previews_per_minute: int = Field(
        20,
        description="identities and names that one API key may look up in previews a minute, in all processes together",
    )
    oauth_jwks_url: str = Field("", description="URL of an OAuth 2 issuer's keys; empty: only API keys are accepted")
    oauth_issuer: str = Field("", description="the claim iss of its access tokens")
    oauth_audience: str = Field("unlearnd", description="the claim aud of its access tokens")
    oauth_scopes: list[str] = Field(
        ["submit", "read", "preview", "download", "audit", "approve"],
        description="scopes that a token may grant, as JSON",
    )
    public_url: Annotated[str, AfterValidator(_check_url)] = Field(
        "", description="public URL of the API, for links in answers; needed beyond a loopback address"
    )
    accel_prefix: Annotated[str, AfterValidator(_check_prefix)] = Field(
        "",
        description="path of nginx's internal location over `versions` in UNLEARND_STORAGE_DIR, as `/released/`; nginx"
        " then sends files, and the API only says which; empty: the API sends them",
    )
    processor_domain: str = Field("localhost", description="OpenDSR: the domain in the processor's certificate")
    alert_url: str = Field("", description="gets a POST if a request fails, waits for approval, is due soon or overdue")
    alert_secret: SecretStr = Field(SecretStr(""), description="whsec_..., signs alerts (Standard Webhooks)")
    alert_days: float = Field(5, description="days before its deadline from which a request is due soon")
    identifier_types: dict[str, str] = Field(
        {},
        description='identity type of each DataGrail identifier, as JSON: {"user_id": "controller_customer_id"}',
    )
    fides_url: str = Field("", description="URL of Fides, for its callbacks")
    transcend_url: str = Field("https://multi-tenant.sombra.transcend.io", description="URL of the Sombra gateway")
    transcend_api_key: SecretStr = Field(SecretStr(""), description="Transcend's API key; empty: its webhook is off")
    transcend_organization: str = Field("", description="organization URI: the audience of Sombra's tokens")
    transcend_internal_key: SecretStr = Field(SecretStr(""), description="internal key of a self-hosted Sombra gateway")
    transcend_public_key: Path = Field(Path(), description="PEM file with the key that verifies Sombra's webhooks")
    datagrail_secrets: Annotated[dict[str, SecretStr], AfterValidator(_check_distinct)] = Field(
        {},
        description="secret of the DataGrail webhook of each model, as JSON, no two the same:"
        ' {"assistant": "..."}; empty: they are off',
    )
    callback_allow_private: bool = Field(False, description="allow callbacks to any private address")
    callback_allow: list[str] = Field(
        [], description='private networks that callbacks may reach, as JSON: ["10.2.0.0/16"]'
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the least level of a log line")
    access_log: bool = Field(True, description="the API logs a line for each request: route, status, time, key")
    log_max_bytes: int = Field(
        33_554_432, ge=0, description="embedded stack: a log file over this size is rotated; 0: never"
    )
    log_files: int = Field(4, ge=0, description="embedded stack: how many rotated files are kept of each log")

    def rows(self) -> list[dict[str, str]]:
        """The variable, the value here and the meaning of every setting; `***` in place of a secret."""
        values = self.model_dump(mode="json")
        return [
            {
                "variable": f"UNLEARND_{name.upper()}",
                "value": "***" if values[name] and _may_be_secret(name, values[name]) else str(values[name]),
                "meaning": field.description or "",
            }
            for name, field in type(self).model_fields.items()
        ]

    def require(self, *names: str) -> None:
        """Check that these settings have a value.

        Raises:
            CannotStart: One has none.
        """
        missing = [f"UNLEARND_{name.upper()}" for name in names if not getattr(self, name)]
        if missing:
            raise CannotStart(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set")

    @property
    def keys_sign_in(self) -> bool:
        """Whether people may sign in to the console with an API key."""
        return not self.oidc_issuer if self.console_api_keys is None else self.console_api_keys

    def check_sign_in(self) -> None:
        """Check that somebody can sign in to the console.

        Raises:
            CannotStart: Nobody can, or a setting of the provider is missing.
        """
        if self.oidc_issuer:
            self.require("oidc_client_id", "oidc_roles")
        elif self.console and not self.keys_sign_in:
            raise CannotStart("UNLEARND_CONSOLE_API_KEYS is false and UNLEARND_OIDC_ISSUER is not set: set one of them")

    def check_pooler(self) -> None:
        """Refuse to serve without notifications: behind a pooler they do not come, and no error says so.

        Raises:
            CannotStart: The server's own URL is missing.
        """
        if self.database_pooler:
            self.require("listen_database_url")

    def check_reachable_at(self, host: str) -> None:
        """Refuse to serve on an address that others reach while nobody said by which URL they do.

        Answers name that URL, and a request's Host header says only what the client likes to see there.

        Raises:
            CannotStart: `public_url` is not set, and `host` is no loopback address.
        """
        if not self.public_url and not is_loopback(host):
            raise CannotStart(f"UNLEARND_PUBLIC_URL is not set: others can reach {host}, so set the URL that they use")
