"""What a log says of itself, and what a proof file holds.

A checkpoint is a signed note after C2SP tlog-checkpoint (`origin`, size, base64 root). A proof file follows C2SP
tlog-proof.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.audit.merkle import LogError, check_inclusion, leaf_hash

ED25519 = b"\x01"  # signature type of C2SP signed-note


DASH = "\N{EM DASH}"


PROOF_HEADER = "c2sp.org/tlog-proof@v1"


HASH = 32


class UnknownSigner(LogError):
    """No key that counts signed a checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself: its name, how many entries, and the root over them."""

    origin: str
    size: int
    root: bytes

    @property
    def body(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def key_id(origin: str, key: Ed25519PublicKey) -> bytes:
    """The four bytes by which a note names its key (C2SP signed-note)."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(origin.encode() + b"\n" + ED25519 + raw).digest()[:4]


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The signed note."""
    signature = key_id(checkpoint.origin, key.public_key()) + key.sign(checkpoint.body.encode())
    return f"{checkpoint.body}\n{DASH} {checkpoint.origin} {base64.b64encode(signature).decode()}\n"


def open_checkpoint(note: str, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    """The checkpoint of a note that one of `keys` signed.

    Raises:
        UnknownSigner: None of these keys signed it.
        LogError: It is not a note, or the signature does not hold.
    """
    body, separator, signatures = note.partition("\n\n")
    lines = body.split("\n")
    if not separator or len(lines) != 3 or not lines[0] or not lines[1].isdecimal() or lines[1] != str(int(lines[1])):
        raise LogError("not a checkpoint")
    checkpoint = Checkpoint(lines[0], int(lines[1]), _unbase64(lines[2], HASH))
    for line in signatures.split("\n"):
        prefix, _, encoded = line.rpartition(" ")
        if prefix != f"{DASH} {checkpoint.origin}":
            continue
        signature = _unbase64(encoded, 4 + 64)
        for key in keys:
            if key_id(checkpoint.origin, key) == signature[:4]:
                try:
                    key.verify(signature[4:], checkpoint.body.encode())
                except InvalidSignature as error:
                    raise LogError("the checkpoint's signature does not hold") from error
                return checkpoint
    raise UnknownSigner("no trusted key signed the checkpoint")


@dataclass(frozen=True, slots=True)
class Proof:
    """That an entry is in the log: what lies beside a certificate as `certificate.tlog-proof`.

    Attributes:
        entry: The entry's canonical bytes.
        index: Its place.
        path: The inclusion proof.
        note: The signed checkpoint that it is a proof against.
    """

    entry: bytes
    index: int
    path: list[bytes]
    note: str

    def dumps(self) -> str:
        """The proof file."""
        lines = [PROOF_HEADER, f"extra {base64.b64encode(self.entry).decode()}", f"index {self.index}"]
        return "\n".join([*lines, *(base64.b64encode(h).decode() for h in self.path), "", self.note])

    @classmethod
    def loads(cls, content: str) -> "Proof":
        """Read a proof file.

        Raises:
            LogError: It is not one.
        """
        head, separator, note = content.partition("\n\n")
        lines = head.split("\n")
        well = len(lines) >= 3 and lines[0] == PROOF_HEADER and lines[1].startswith("extra ")
        number = lines[2].removeprefix("index ") if well else ""
        if not (separator and well and lines[2].startswith("index ") and number.isdecimal()):
            raise LogError("not a log proof")
        return cls(_unbase64(lines[1][6:]), int(number), [_unbase64(line, HASH) for line in lines[3:]], note)

    def check(self, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
        """The checkpoint, if a trusted key signed it and the entry is in its tree.

        Raises:
            LogError: Either does not hold.
        """
        checkpoint = open_checkpoint(self.note, keys)
        check_inclusion(leaf_hash(self.entry), self.index, checkpoint.size, self.path, checkpoint.root)
        return checkpoint


def _unbase64(text: str, length: int | None = None) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LogError("not base64") from error
    if length is not None and len(found) != length:
        raise LogError("a hash or signature of another length")
    return found
