"""Checkpoints of a transparency log, and proof files.

A checkpoint is a signed note in the format of C2SP tlog-checkpoint (`origin`, size, base64 root). A proof file follows
C2SP tlog-proof.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.audit.merkle import HASH_BYTES, LogError, check_inclusion, leaf_hash

ED25519 = b"\x01"  # signature type of C2SP signed-note
DASH = "\N{EM DASH}"  # starts a signature line of a signed note
PROOF_HEADER = "c2sp.org/tlog-proof@v1"
KEY_ID_BYTES, SIGNATURE_BYTES = 4, 64


class UnknownSigner(LogError):
    """No trusted key signed the checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its name, the number of its entries, and the Merkle root over them."""

    origin: str
    size: int
    root: bytes

    @property
    def body(self) -> str:
        """The text under the signature."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def key_id(origin: str, key: Ed25519PublicKey) -> bytes:
    """The four bytes that identify a key in a note (C2SP signed-note)."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(origin.encode() + b"\n" + ED25519 + raw).digest()[:KEY_ID_BYTES]


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The signed note of a checkpoint."""
    signature = key_id(checkpoint.origin, key.public_key()) + key.sign(checkpoint.body.encode())
    return f"{checkpoint.body}\n{DASH} {checkpoint.origin} {base64.b64encode(signature).decode()}\n"


def read_checkpoint(note: str) -> Checkpoint:
    """Read a signed note without looking at its signatures.

    Raises:
        LogError: The text is not a note.
    """
    body, separator, _ = note.partition("\n\n")
    lines = body.split("\n")
    if not separator or len(lines) != 3 or not lines[0] or not lines[1].isdecimal() or lines[1] != str(int(lines[1])):
        raise LogError("not a checkpoint")
    return Checkpoint(lines[0], int(lines[1]), decode_base64(lines[2], HASH_BYTES))


def open_checkpoint(note: str, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    """Read a signed note; one of `keys` must have signed it.

    Raises:
        UnknownSigner: None of `keys` signed the note.
        LogError: The text is not a note, or its signature is invalid.
    """
    checkpoint, signatures = read_checkpoint(note), note.partition("\n\n")[2]
    for line in signatures.split("\n"):
        prefix, _, encoded = line.rpartition(" ")
        if prefix != f"{DASH} {checkpoint.origin}":
            continue
        signature = decode_base64(encoded, KEY_ID_BYTES + SIGNATURE_BYTES)
        for key in keys:
            if key_id(checkpoint.origin, key) == signature[:KEY_ID_BYTES]:
                try:
                    key.verify(signature[KEY_ID_BYTES:], checkpoint.body.encode())
                except InvalidSignature as error:
                    raise LogError("the checkpoint's signature is invalid") from error
                return checkpoint
    raise UnknownSigner("no trusted key signed the checkpoint")


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that an entry is in the log; a release folder has one as `certificate.tlog-proof`.

    Attributes:
        entry: The entry's canonical bytes.
        index: The entry's index in the log.
        path: The hashes of the inclusion proof.
        note: The signed checkpoint whose tree holds the entry.
    """

    entry: bytes
    index: int
    path: list[bytes]
    note: str

    def dumps(self) -> str:
        """The content of the proof file."""
        lines = [PROOF_HEADER, f"extra {base64.b64encode(self.entry).decode()}", f"index {self.index}"]
        return "\n".join([*lines, *(base64.b64encode(h).decode() for h in self.path), "", self.note])

    @classmethod
    def loads(cls, content: str) -> "Proof":
        """Read the content of a proof file.

        Raises:
            LogError: The content is not a proof file.
        """
        head, separator, note = content.partition("\n\n")
        lines = head.split("\n")
        has_header = len(lines) >= 3 and lines[0] == PROOF_HEADER and lines[1].startswith("extra ")
        number = lines[2].removeprefix("index ") if has_header else ""
        if not (separator and has_header and lines[2].startswith("index ") and number.isdecimal()):
            raise LogError("not a log proof")
        entry, path = decode_base64(lines[1][6:]), [decode_base64(line, HASH_BYTES) for line in lines[3:]]
        return cls(entry, int(number), path, note)

    def check(self, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
        """The checkpoint, after checking that a trusted key signed it and that its tree holds the entry.

        Raises:
            LogError: No trusted key signed the checkpoint, or its tree does not hold the entry.
        """
        checkpoint = open_checkpoint(self.note, keys)
        check_inclusion(leaf_hash(self.entry), self.index, checkpoint.size, self.path, checkpoint.root)
        return checkpoint


def decode_base64(text: str, length: int | None = None) -> bytes:
    """Decode strict base64; the result must have `length` bytes, if given.

    Raises:
        LogError: It is not base64, or of another length.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LogError("not base64") from error
    if length is not None and len(data) != length:
        raise LogError("a hash or signature has the wrong length")
    return data
