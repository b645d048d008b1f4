"""Settings, read once at the edge. Every one has an `UNLEARND_` variable; `unlearnd settings` lists them."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.audit.wording import problem_in


def _sayable(name: str) -> str:
    wrong = problem_in(name)
    if wrong:
        raise ValueError(f"a certificate could not say this: {wrong}")
    return name


Sayable = Annotated[str, AfterValidator(_sayable)]


class Settings(BaseSettings):
    """What an operator may set. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="UNLEARND_", extra="ignore")

    database_url: str = Field("", description="postgresql://user:password@host/database; not the schema's owner")
    owner_database_url: str = Field("", description="the same as the schema's owner, for `unlearnd migrate` alone")
    broker_url: str = Field("", description="redis://host:6379/0; Valkey or Redis")
    storage_dir: Path = Field(Path("storage"), description="shared by API, control and compute workers")
    keys_dir: Path = Field(Path("keys"), description="kek; API: receipt.pem; control: all signing keys")
    kms_key_id: str = Field("", description="an AWS KMS key wraps data keys instead of `kek`; needs unlearnd[kms]")
    issuer: Annotated[str, AfterValidator(_sayable)] = Field(
        "unlearnd", description="named in certificates; no personal data"
    )
    max_record_bytes: int = Field(65_536, description="one record's text in UTF-8")
    max_records: int = Field(256, description="records in one deletion request")
    max_body_bytes: int = Field(8_388_608, description="a request body")
    max_requests: int = Field(200, description="requests that an API process works on at once; more are answered 503")
    max_connections: int = Field(2000, description="open connections of an API process; more are closed")
    request_seconds: float = Field(30, description="how long a request may take to arrive, or an answer to be taken on")
    max_wait_seconds: float = Field(900, description="default of a model's policy: how long a batch stays open")
    lease_seconds: float = Field(60, description="a claim without a heartbeat for so long is up for grabs")
    stall_seconds: float = Field(1800, description="a job without a step of progress for so long loses its lease")
    sweep_seconds: float = Field(30, description="how often lost wake-ups and expired leases are looked for")
    collect_seconds: float = Field(600, description="how often leftovers of ended jobs and crashes are removed")
    orphan_seconds: float = Field(86_400, description="a folder that nothing names is removed after so long")
    retry_seconds: float = Field(15, description="back-off after a failed attempt; four times as long after each more")
    max_attempts: int = Field(3, description="claims of a job before it is quarantined")
    database_pool: int = Field(10, description="connections a process keeps")
    custody_days: float = Field(90, description="how long after its end a request's texts are kept, unless it failed")
    callback_seconds: float = Field(10, description="how long a callback's receiver may take to answer")
    requests_per_minute: int = Field(30_000, description="of one key, in each API process; 0: any number")
    oauth_jwks_url: str = Field("", description="where an OAuth 2 issuer's keys are; without it only API keys count")
    oauth_issuer: str = Field("", description="the claim iss of its access tokens")
    oauth_audience: str = Field("unlearnd", description="the claim aud of its access tokens")
    oauth_scopes: list[str] = Field(
        ["submit", "read", "download", "audit", "approve"], description="that a token may give, as JSON"
    )
    public_url: str = Field("", description="where the API is reached from outside, as links in answers say")
    processor_domain: str = Field("localhost", description="OpenDSR: the domain that its certificate is issued for")
    alert_url: str = Field("", description="told when a request fails, waits for approval, or is due soon or past")
    alert_secret: SecretStr = Field(SecretStr(""), description="whsec_..., signs alerts (Standard Webhooks)")
    alert_days: float = Field(5, description="how long before its deadline a request is due soon")
    identifier_types: dict[str, str] = Field(
        {}, description='of DataGrail and Transcend, by their names, as JSON: {"user_id": "controller_customer_id"}'
    )
    fides_url: str = Field("", description="where Fides is reached, for its callbacks")
    transcend_url: str = Field("https://multi-tenant.sombra.transcend.io", description="the Sombra gateway")
    transcend_api_key: SecretStr = Field(SecretStr(""), description="of Transcend; without it its webhook is off")
    transcend_organization: str = Field("", description="its URI, which Sombra's tokens are made out to")
    transcend_internal_key: SecretStr = Field(SecretStr(""), description="of a Sombra gateway of one's own")
    transcend_public_key: Path = Field(Path(), description="PEM; Sombra signs its webhooks with the private one")
    datagrail_secret: SecretStr = Field(SecretStr(""), description="of DataGrail's webhooks; without it they are off")
    callback_allow_private: bool = Field(False, description="let callbacks go to any private address")
    callback_allow: list[str] = Field([], description='inner networks they may go to, as JSON: ["10.2.0.0/16"]')
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
