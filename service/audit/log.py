"""The transparency log as mathematics: trees, proofs and checkpoints. No database, no network.

A leaf is SHA-256(0x00 | entry), a node SHA-256(0x01 | left | right), after RFC 6962, section 2.1. A checkpoint is a
signed note after C2SP tlog-checkpoint (`origin`, size, base64 root), a proof file after C2SP tlog-proof.

    inclusion      entry i is in the tree of a checkpoint           RFC 9162, section 2.1.3.2
    consistency    a checkpoint's tree begins with an older one's   RFC 9162, section 2.1.4.2
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ED25519 = b"\x01"  # signature type of C2SP signed-note
DASH = "\N{EM DASH}"
PROOF_HEADER = "c2sp.org/tlog-proof@v1"
HASH = 32


class LogError(ValueError):
    """A proof or checkpoint does not hold, or cannot be read; says which."""


class UnknownSigner(LogError):
    """No key that counts signed a checkpoint."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry, 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's hash over leaf hashes; that of the empty tree is SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:  # pairs from the left; an odd one rises as it is, which is RFC 6962's split
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that, with leaf `index`, give the root.

    Raises:
        LogError: There is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise LogError("no such entry")
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*inclusion_proof(leaves[:k], index), root(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), root(leaves[:k])]


def consistency_proof(leaves: Sequence[bytes], older: int) -> list[bytes]:
    """The hashes that show that the tree of the first `older` leaves is the beginning of this one.

    Raises:
        LogError: The older tree is larger than this one.
    """
    if not 0 <= older <= len(leaves):
        raise LogError("the older tree is larger")
    return _consistency(leaves, older, whole=True) if 0 < older < len(leaves) else []


def _consistency(leaves: Sequence[bytes], older: int, *, whole: bool) -> list[bytes]:
    if older == len(leaves):
        return [] if whole else [root(leaves)]
    k = _split(len(leaves))
    if older <= k:
        return [*_consistency(leaves[:k], older, whole=whole), root(leaves[k:])]
    return [*_consistency(leaves[k:], older - k, whole=False), root(leaves[:k])]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> None:
    """Raise unless the leaf is at `index` of the tree of `size` leaves with that root.

    Raises:
        LogError: It is not, or the proof is of another length.
    """
    if not 0 <= index < size:
        raise LogError("the index lies outside the tree")
    found, first, last, left = leaf, index, size - 1, list(proof)
    while left:
        if last == 0:
            raise LogError("the inclusion proof is too long")
        sibling = left.pop(0)
        if first % 2 or first == last:
            found = node_hash(sibling, found)
            while first % 2 == 0 and first:
                first, last = first >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        first, last = first >> 1, last >> 1
    if last:
        raise LogError("the inclusion proof is too short")
    if found != expected:
        raise LogError("the entry is not in the log at that index")


def check_consistency(  # noqa: C901  # the RFC's steps in the RFC's order
    older: int, newer: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Raise unless the older tree is the beginning of the newer one.

    Raises:
        LogError: It is not: the log was rewritten, reordered, truncated or forked.
    """
    if older > newer:
        raise LogError("the log has become smaller")
    if older in (0, newer):
        if proof:
            raise LogError("the consistency proof is too long")
        if older and old_root != new_root:
            raise LogError("EQUIVOCATION: two logs of one size with different roots")
        return
    left = list(proof) if older & (older - 1) else [old_root, *proof]
    if not left:
        raise LogError("the consistency proof is too short")
    first, last = older - 1, newer - 1
    while first % 2:
        first, last = first >> 1, last >> 1
    old = new = left.pop(0)
    for sibling in left:
        if last == 0:
            raise LogError("the consistency proof is too long")
        if first % 2 or first == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while first % 2 == 0 and first:
                first, last = first >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        first, last = first >> 1, last >> 1
    if last:
        raise LogError("the consistency proof is too short")
    if old != old_root or new != new_root:
        raise LogError("the older log is not the beginning of the newer one")


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
