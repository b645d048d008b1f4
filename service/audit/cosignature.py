"""Cosignatures of witnesses on checkpoints (C2SP tlog-cosignature, Ed25519).

A witness cosigns a checkpoint of a log only if it goes on from the last one that it cosigned. So an issuer who shows
one past to one auditor and another past to another one does not get both of them cosigned.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.audit.checkpoint import DASH, KEY_ID_BYTES, SIGNATURE_BYTES, decode_base64, read_checkpoint
from service.audit.merkle import LogError

COSIGNATURE = b"\x04"  # signature type of C2SP tlog-cosignature
TIME_BYTES, KEY_BYTES = 8, 32


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """The name and the public key of a witness."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, vkey: str) -> "WitnessKey":
        """Read a verifier key of C2SP signed-note: name, key id in hex, and type and key in base64, joined by `+`.

        Raises:
            LogError: It is none of a witness.
        """
        name, _, rest = vkey.partition("+")
        hashed, _, encoded = rest.partition("+")
        key = decode_base64(encoded, len(COSIGNATURE) + KEY_BYTES)
        witness = cls(name, key[len(COSIGNATURE) :])
        named = name and not set(name) & set(" \t\n+")
        if not named or not key.startswith(COSIGNATURE) or hashed != witness.key_id.hex():
            raise LogError("not the key of a witness")
        return witness

    @property
    def key_id(self) -> bytes:
        """The four bytes that identify the key in a note."""
        return hashlib.sha256(self.name.encode() + b"\n" + COSIGNATURE + self.public).digest()[:KEY_ID_BYTES]

    def line_in(self, note: str) -> str | None:
        """This witness' signature line in a note, or in an answer to `add-checkpoint`; None if there is none."""
        for line in note.splitlines():
            prefix, _, encoded = line.rpartition(" ")
            if prefix == f"{DASH} {self.name}" and decode_base64(encoded)[:KEY_ID_BYTES] == self.key_id:
                return line
        return None

    def check(self, body: str, line: str) -> dt.datetime:
        """When the witness cosigned the text of a checkpoint, by a signature line of its own.

        Raises:
            LogError: The signature is invalid.
        """
        blob = decode_base64(line.rpartition(" ")[2], KEY_ID_BYTES + TIME_BYTES + SIGNATURE_BYTES)
        seconds = int.from_bytes(blob[KEY_ID_BYTES : KEY_ID_BYTES + TIME_BYTES], "big")
        signed = f"cosignature/v1\ntime {seconds}\n{body}".encode()
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob[KEY_ID_BYTES + TIME_BYTES :], signed)
            return dt.datetime.fromtimestamp(seconds, dt.UTC)
        except (InvalidSignature, ValueError, OverflowError, OSError) as error:
            raise LogError(f"the cosignature of {self.name} is invalid") from error


def cosigned_at(note: str, witness: WitnessKey) -> dt.datetime | None:
    """When a witness cosigned the checkpoint of a note; None if it did not.

    Raises:
        LogError: The text is not a note, or the witness' signature is invalid.
    """
    body, line = read_checkpoint(note).body, witness.line_in(note.partition("\n\n")[2])
    return witness.check(body, line) if line else None
