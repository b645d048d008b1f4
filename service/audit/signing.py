"""The certificate key: DSSE envelopes signed and checked with securesystemslib (ed25519)."""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)  # fmt: skip
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey

from service.privacy.envelope import write_private

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class CertificateSigner:
    """Signs certificates with the key in a PEM file; control workers only."""

    def __init__(self, path: Path) -> None:
        """Read an unencrypted ed25519 private key."""
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path}: the certificate key is ed25519")
        self._signer = CryptoSigner(key)
        self._since = dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC)

    def sign(self, payload: bytes) -> bytes:
        """A DSSE envelope over `payload`, as JSON bytes."""
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(self._signer)
        return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()

    def trusted(self) -> dict[str, Any]:
        """The key's entry in `trust.json`."""
        return _entry(self._signer.public_key, self._since, role="certificate")


def create_key(path: Path) -> None:
    """Make an ed25519 key at `path`, mode 0600, unless there is one."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem)


def log_trusted(path: Path, origin: str) -> dict[str, Any]:
    """The log key's entry in `trust.json`."""
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    since = dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC)
    return {**_entry(CryptoSigner(key).public_key, since, role="log"), "origin": origin}


def _entry(key: Any, since: dt.datetime, *, role: str) -> dict[str, Any]:
    return {"keyid": key.keyid, **key.to_dict(), "role": role, "valid_from": since.isoformat()}


def trust_json(entries: Sequence[dict[str, Any]]) -> bytes:
    """`trust.json`, as JSON bytes."""
    return json.dumps({"version": 1, "keys": list(entries)}, sort_keys=True, indent=1).encode()


def log_keys(trust: dict[str, Any]) -> list[Ed25519PublicKey]:
    """The keys of a parsed `trust.json` that may sign checkpoints."""
    raw = [entry["keyval"]["public"] for entry in trust["keys"] if entry.get("role") == "log"]
    return [Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)) for public in raw]


def trusted_keys(trust: dict[str, Any]) -> dict[str, SSlibKey]:
    """keyid -> key, of a parsed `trust.json`."""
    keys = {}
    for entry in trust["keys"]:
        body = {k: entry[k] for k in ("keytype", "scheme", "keyval")}
        keys[entry["keyid"]] = SSlibKey.from_dict(entry["keyid"], body)
    return keys


def open_envelope(data: bytes, keys: dict[str, SSlibKey]) -> bytes:
    """The payload of a DSSE envelope that one of `keys` signed.

    Raises:
        VerificationError: No signature of these keys holds, or the payload type is another.
        ValueError: Not an envelope.
    """
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a DSSE envelope") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise VerificationError("the payload type is not in-toto")
    envelope.verify(list(keys.values()), 1)
    return envelope.payload
