"""Types of settings that are URLs, and of witnesses."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, field_validator

from service.audit.cosignature import WitnessKey
from service.audit.merkle import LogError


def with_scheme(*schemes: str) -> AfterValidator:
    """A validator that refuses a URL of another scheme, or one that is cut at a special character."""

    def check(value: str) -> str:
        try:
            parts = urlsplit(value)
            user, _, hosts = parts.netloc.rpartition("@")
            rest = parts.path + parts.fragment if parts.netloc else ""
            ports = [urlsplit(f"//{host}").port for host in hosts.split(",")]  # libpq takes several hosts
            is_usable = parts.scheme in schemes and "@" not in user + rest and 0 not in ports
        except ValueError:
            is_usable = False  # the exception's message quotes a part of the URL, which may be a password
        if value and not is_usable:
            raise ValueError(f"it must begin with {schemes[0]}://, with special characters percent-encoded")
        return value

    return AfterValidator(check)


BrokerUrl = Annotated[str, with_scheme("redis", "rediss", "redis+socket")]
BucketUrl = Annotated[str, with_scheme("s3", "gs", "az")]
DatabaseUrl = Annotated[str, with_scheme("postgresql", "postgres")]
WitnessUrl = Annotated[str, with_scheme("https", "http")]


class Witness(BaseModel):
    """Somebody who cosigns checkpoints of the log."""

    url: WitnessUrl
    key: str

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, key: str) -> str:
        """It can be read."""
        try:
            WitnessKey.parse(key)
        except LogError as error:
            raise ValueError("it must be a witness' verifier key: name+id+key") from error
        return key

    @property
    def witness_key(self) -> WitnessKey:
        """The key, parsed."""
        return WitnessKey.parse(self.key)
