"""DSSE v1: envelopes of signed bytes (https://github.com/secure-systems-lab/dsse, protocol and envelope).

A signature is over PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload, so that a payload cannot be taken
for one of another type. Keys are ed25519, or P-256 with SHA-256; a keyid is the SHA-256 of the key (DER, SPKI), hex.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

IN_TOTO = "application/vnd.in-toto+json"
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class NotAnEnvelope(ValueError):
    """Not a DSSE envelope."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is a claim, and may be empty."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with whatever signatures came with it; nothing is checked yet."""

    payload: bytes
    payload_type: str
    signatures: Sequence[Signature]

    @classmethod
    def of(cls, content: Any) -> "Envelope":
        """Read the parsed JSON of an envelope.

        Raises:
            NotAnEnvelope: It is not one.
        """
        try:
            signatures = [Signature(str(s.get("keyid", "")), _bytes(s["sig"])) for s in content["signatures"]]
            return cls(_bytes(content["payload"]), str(content["payloadType"]), signatures)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotAnEnvelope("not a DSSE envelope") from error

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


def sign(payload: bytes, payload_type: str, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope over `payload` by every key, as JSON bytes."""
    data = Envelope(payload, payload_type, []).signed
    signatures = [{"keyid": keyid(key.public_key()), "sig": _text(_sign(key, data))} for key in keys]
    content = {"payload": _text(payload), "payloadType": payload_type, "signatures": signatures}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def holds(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether this key made this signature over these bytes."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def keyid(key: PublicKey) -> str:
    """The name of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _sign(key: PrivateKey, data: bytes) -> bytes:
    return key.sign(data) if isinstance(key, Ed25519PrivateKey) else key.sign(data, ECDSA(SHA256()))


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
