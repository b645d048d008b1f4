"""The certificate key: DSSE envelopes signed and checked with securesystemslib (ed25519)."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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

    @staticmethod
    def create(path: Path) -> None:
        """Make a key at `path`, mode 0600, unless there is one."""
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, pem)

    def sign(self, payload: bytes) -> bytes:
        """A DSSE envelope over `payload`, as JSON bytes."""
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(self._signer)
        return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()

    def trust(self) -> bytes:
        """`trust.json`: the keys whose certificates count, as JSON bytes."""
        key = self._signer.public_key
        entry = {
            "keyid": key.keyid,
            **key.to_dict(),
            "role": "certificate",
            "valid_from": self._since.isoformat(),
        }
        return json.dumps({"version": 1, "keys": [entry]}, sort_keys=True, indent=1).encode()


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
