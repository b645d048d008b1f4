"""`trust.json`: the keys that an auditor trusts, the role of each, and the time during which it is valid.

A key has one role: `certificate` (certificates), `release` (model files), `log` (checkpoints) or `receipt` (receipts at
intake). A key is trusted unless it is revoked or past `valid_until`. A key that rotation retired signs nothing new, but
its signatures on what the log held before `retired_at` stay valid. The time of a log entry comes from the log and not
from the signer, so that the holder of an old key gains nothing by dating back.

A `trust.json` has a version, which counts up, and an expiry, as The Update Framework has it. An old file does not know
what was revoked since: one that somebody gives counts until it expires, and until a release names a newer version.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.audit.dsse import IN_TOTO, Envelope, NotAnEnvelope, PublicKey, keyid, signature_is_valid
from service.domain.json_types import Json

ROLES = ("certificate", "release", "log", "receipt")
SKEW = dt.timedelta(minutes=5)  # allowed difference between the clocks of an issuer's hosts


class TrustEntry(TypedDict):
    """One key in `trust.json`."""

    keyid: str
    role: str
    public: str
    valid_from: str
    valid_until: NotRequired[str | None]
    retired_at: NotRequired[str | None]
    revoked_at: NotRequired[str | None]


class Untrusted(ValueError):
    """No trusted key has signed this."""


class BadSignature(ValueError):
    """The signature of a trusted key is invalid."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, its role, and the time during which it is valid."""

    keyid: str
    role: str
    public: PublicKey
    valid_from: dt.datetime
    retired_at: dt.datetime | None

    def valid_at(self, when: dt.datetime) -> bool:
        """Whether a signature made at `when` is valid: the key was in use and not retired."""
        return self.valid_from - SKEW <= when and self.not_retired_at(when)

    def not_retired_at(self, when: dt.datetime) -> bool:
        """Whether the key was not yet retired at `when`."""
        return self.retired_at is None or when <= self.retired_at


@dataclass(frozen=True, slots=True)
class Trust:
    """The trusted keys.

    Attributes:
        keys: The keys that are neither revoked nor expired.
        needed: (since, number of certificate keys that must sign a certificate), oldest first.
        version: Counts the changes of the file; 0 if the file has no version.
        expires: When the file counts no more; None if the file does not say it.
    """

    keys: Sequence[Key]
    needed: Sequence[tuple[dt.datetime, int]]
    version: int = 0
    expires: dt.datetime | None = None

    def signatures_needed_at(self, when: dt.datetime) -> int:
        """How many certificate keys had to sign a certificate at `when`."""
        return next((count for since, count in reversed(self.needed) if since <= when), 1)

    def keys_for(self, role: str) -> dict[str, Key]:
        """The keys of one role, by keyid."""
        return {key.keyid: key for key in self.keys if key.role == role}

    @property
    def log_keys(self) -> list[Ed25519PublicKey]:
        """The public keys that may sign checkpoints."""
        return [key.public for key in self.keys_for("log").values() if isinstance(key.public, Ed25519PublicKey)]


def parse_trust(data: bytes) -> Trust:
    """Parse the bytes of a `trust.json`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: The bytes are not a `trust.json`.
    """
    content = json.loads(data)
    if not content["keys"]:
        raise ValueError("no keys")
    now = dt.datetime.now(dt.UTC)
    keys = [_key(entry) for entry in content["keys"] if not _revoked_or_expired(entry, now)]
    needed = [(dt.datetime.fromisoformat(n["since"]), int(n["count"])) for n in content["certificate_keys_needed"]]
    version = content.get("version", 0)
    if type(version) is not int:
        raise TypeError("the version is not a whole number")
    return Trust(keys, needed, version, _expiry(content))


def _expiry(content: Mapping[str, str]) -> dt.datetime | None:
    """When a `trust.json` expires; None if it does not say it."""
    if "expires" not in content:
        return None
    expires = dt.datetime.fromisoformat(content["expires"])
    if expires.tzinfo is None:
        raise ValueError("the expiry has no time zone")
    return expires


def _revoked_or_expired(entry: TrustEntry, now: dt.datetime) -> bool:
    until = entry.get("valid_until")
    return bool(entry.get("revoked_at")) or (until is not None and dt.datetime.fromisoformat(until) < now)


def _key(entry: TrustEntry) -> Key:
    """Read one entry of `trust.json`; its keyid must be the digest of its key."""
    public = load_pem_public_key(entry["public"].encode())
    if not isinstance(public, PublicKey) or keyid(public) != entry["keyid"]:
        raise ValueError("the keyid does not match the key")
    retired = entry.get("retired_at")
    return Key(
        keyid=entry["keyid"],
        role=entry["role"],
        public=public,
        valid_from=dt.datetime.fromisoformat(entry["valid_from"]),
        retired_at=dt.datetime.fromisoformat(retired) if retired else None,
    )


def open_envelope(data: bytes, keys: dict[str, Key], payload_type: str) -> tuple[bytes, list[Key]]:
    """The payload of a DSSE envelope, and the keys that signed it.

    Args:
        data: The envelope's JSON.
        keys: The trusted keys; a signature by any other key makes the envelope untrusted.
        payload_type: The type that the payload must have.

    Raises:
        NotAnEnvelope: `data` is not a DSSE envelope.
        Untrusted: An unknown key signed, nobody signed, or one key signed twice.
        BadSignature: A signature is invalid, or the payload has another type.
    """
    envelope = Envelope.from_json(_parse_json(data))
    claimed = [signature.keyid for signature in envelope.signatures]
    if len(set(claimed)) != len(claimed):
        raise Untrusted("one key has signed twice; each key may sign once")
    if not set(claimed) <= set(keys):
        raise Untrusted("signed by a key that is unknown, expired or revoked")
    if envelope.payload_type != payload_type:
        raise BadSignature("the signature is for another type of payload")
    if not claimed:
        raise Untrusted("nobody has signed")
    for signature in envelope.signatures:
        if not signature_is_valid(keys[signature.keyid].public, signature.sig, envelope.signed):
            raise BadSignature("the signature does not match the payload")
    return envelope.payload, [keys[keyid] for keyid in claimed]


def open_bundle(data: bytes, keys: dict[str, Key]) -> tuple[bytes, Key]:
    """The payload of an OpenSSF Model Signing bundle, and the one of `keys` that signed it.

    Raises:
        NotAnEnvelope: `data` is not a Model Signing bundle.
        Untrusted: None of `keys` signed it.
    """
    content = _parse_json(data)
    envelope = Envelope.from_json(content.get("dsseEnvelope") if isinstance(content, dict) else None)
    for signature in envelope.signatures if envelope.payload_type == IN_TOTO else ():
        for key in keys.values():  # a bundle names no keyid
            if isinstance(key.public, EllipticCurvePublicKey) and signature_is_valid(
                key.public, signature.sig, envelope.signed
            ):
                return envelope.payload, key
    raise Untrusted("no trusted release key has signed it")


def _parse_json(data: bytes) -> Json:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotAnEnvelope("not a DSSE envelope") from error
