"""DSSE v1: envelopes of signed bytes (https://github.com/secure-systems-lab/dsse, protocol and envelope).

A signature covers PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload. The type is signed too, so that
nobody can pass a payload off as another type. Keys are ed25519, or P-256 with SHA-256. A keyid is the hex SHA-256 of
the public key (DER, SPKI).
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.domain.json_types import Json

IN_TOTO = "application/vnd.in-toto+json"
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class NotAnEnvelope(ValueError):
    """The bytes are not a DSSE envelope."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is the signer's claim and may be empty."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its signatures, none of them checked yet."""

    payload: bytes
    payload_type: str
    signatures: Sequence[Signature]

    @classmethod
    def from_json(cls, content: Json) -> "Envelope":
        """Read an envelope from parsed JSON.

        Raises:
            NotAnEnvelope: The JSON is not a DSSE envelope.
        """
        try:
            signatures = [Signature(str(s.get("keyid", "")), _decode_base64(s["sig"])) for s in content["signatures"]]
            return cls(_decode_base64(content["payload"]), str(content["payloadType"]), signatures)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotAnEnvelope("not a DSSE envelope") from error

    @property
    def signed(self) -> bytes:
        """The bytes under the signatures: PAE over type and payload."""
        payload_type = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type, len(self.payload), self.payload)


def sign(payload: bytes, payload_type: str, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope around `payload` with a signature by every key, as JSON bytes."""
    data = Envelope(payload, payload_type, []).signed
    signatures = [{"keyid": keyid(key.public_key()), "sig": _encode_base64(_sign(key, data))} for key in keys]
    content = {"payload": _encode_base64(payload), "payloadType": payload_type, "signatures": signatures}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def signature_is_valid(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is a valid signature over `data` by this key."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def keyid(key: PublicKey) -> str:
    """The id of a public key: the hex SHA-256 of its DER form."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _sign(key: PrivateKey, data: bytes) -> bytes:
    return key.sign(data) if isinstance(key, Ed25519PrivateKey) else key.sign(data, ECDSA(SHA256()))


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
