"""`trust.json`: whose signatures count, for what, and until when.

A key has a role: `certificate` (the record), `release` (the model files), `log` (checkpoints), `receipt` (intake). It
counts unless it is revoked or past `valid_until`. One that was retired by rotation signs nothing new: what the log had
before `retired_at` still counts, and an entry's time is the log's word, not the signer's, so that dating back is of no
use to whoever has an old key.
"""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.audit.dsse import IN_TOTO, Envelope, NotAnEnvelope, PublicKey, holds, keyid

ROLES = ("certificate", "release", "log", "receipt")
SKEW = dt.timedelta(minutes=5)  # between the clocks of an issuer's hosts


class Untrusted(ValueError):
    """No key that counts has signed this."""


class BadSignature(ValueError):
    """A key that counts is named, and its signature does not hold."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and what it is for."""

    keyid: str
    role: str
    public: PublicKey
    valid_from: dt.datetime
    retired_at: dt.datetime | None

    def counts_at(self, when: dt.datetime) -> bool:
        """Whether a signature of that time counts."""
        return self.valid_from - SKEW <= when and self.in_use_at(when)

    def in_use_at(self, when: dt.datetime) -> bool:
        """Whether it was not retired by then."""
        return self.retired_at is None or when <= self.retired_at


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that count.

    Attributes:
        keys: Without those that are revoked or have expired.
        needed: (since, how many certificate keys must have signed a record), oldest first.
    """

    keys: Sequence[Key]
    needed: Sequence[tuple[dt.datetime, int]]

    def signatures_needed_at(self, when: dt.datetime) -> int:
        """How many certificate keys must have signed a record of that time."""
        return next((count for since, count in reversed(self.needed) if since <= when), 1)

    def keys_for(self, role: str) -> dict[str, Key]:
        """keyid -> key of one role."""
        return {key.keyid: key for key in self.keys if key.role == role}

    @property
    def log_keys(self) -> list[Ed25519PublicKey]:
        """Keys that may sign checkpoints."""
        return [key.public for key in self.keys_for("log").values() if isinstance(key.public, Ed25519PublicKey)]


def read_trust(path: Path, now: dt.datetime | None = None) -> Trust:
    """Read a `trust.json`.

    Raises:
        OSError: It is missing.
        ValueError, KeyError, TypeError, AttributeError: It is not one.
    """
    found = json.loads(path.read_bytes())
    if not found["keys"]:
        raise ValueError("no keys")
    now = now or dt.datetime.now(dt.UTC)
    keys = [_key(entry) for entry in found["keys"] if not _lapsed(entry, now)]
    needed = [(dt.datetime.fromisoformat(n["since"]), int(n["count"])) for n in found["certificate_keys_needed"]]
    return Trust(keys, needed)


def _lapsed(entry: dict[str, Any], now: dt.datetime) -> bool:
    until = entry.get("valid_until")
    return bool(entry.get("revoked_at")) or (until is not None and dt.datetime.fromisoformat(until) < now)


def _key(entry: dict[str, Any]) -> Key:
    public = load_pem_public_key(entry["public"].encode())
    if not isinstance(public, PublicKey) or keyid(public) != entry["keyid"]:
        raise ValueError("a keyid that is not its key's")
    retired = entry.get("retired_at")
    return Key(
        entry["keyid"], entry["role"], public, dt.datetime.fromisoformat(entry["valid_from"]),
        dt.datetime.fromisoformat(retired) if retired else None,
    )  # fmt: skip


def open_envelope(data: bytes, keys: dict[str, Key], payload_type: str) -> tuple[bytes, list[Key]]:
    """The payload of a DSSE envelope, and who signed it.

    Args:
        data: The envelope's JSON.
        keys: Those that count; a signature of any other makes it untrusted.
        payload_type: What the payload must be.

    Raises:
        NotAnEnvelope: It cannot be read.
        Untrusted: Signed by an unknown key, by nobody, or by one key twice.
        BadSignature: A signature does not hold, or the payload is of another type.
    """
    envelope = Envelope.of(_json(data))
    claimed = [signature.keyid for signature in envelope.signatures]
    if len(set(claimed)) != len(claimed):
        raise Untrusted("one key has signed twice and counts once")
    if not set(claimed) <= set(keys):
        raise Untrusted("signed by a key that is unknown, expired or revoked")
    if envelope.payload_type != payload_type:
        raise BadSignature("the signature is for another type of payload")
    if not claimed:
        raise Untrusted("nobody has signed")
    for signature in envelope.signatures:
        if not holds(keys[signature.keyid].public, signature.sig, envelope.signed):
            raise BadSignature("the signature does not match what it is under")
    return envelope.payload, [keys[keyid] for keyid in claimed]


def open_bundle(data: bytes, keys: dict[str, Key]) -> tuple[bytes, Key]:
    """The payload of an OpenSSF Model Signing bundle, and which of `keys` signed it.

    Raises:
        NotAnEnvelope: It cannot be read.
        Untrusted: None of these keys has.
    """
    content = _json(data)
    envelope = Envelope.of(content.get("dsseEnvelope") if isinstance(content, dict) else None)
    for signature in envelope.signatures if envelope.payload_type == IN_TOTO else ():
        for key in keys.values():  # a bundle names no keyid
            if isinstance(key.public, EllipticCurvePublicKey) and holds(key.public, signature.sig, envelope.signed):
                return envelope.payload, key
    raise Untrusted("no release key that counts has signed it")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotAnEnvelope("not a DSSE envelope") from error
