"""Commitments to submitted texts, and the Merkle trees over them.

`C = SHA-256("unlearn/commit/v1" | nonce, 32 bytes | length, u64 big-endian | exact bytes)`. The submitter has
the text and, in the receipt, the nonce; with both the submitter, and nobody else, can show that the text was in a
request. The nonce is needed because a plain hash hides nothing: hashing every telephone number reveals the one that
was submitted.
"""

import hashlib
from collections.abc import Sequence

from service.audit.merkle import leaf_hash, root

NONCE_BYTES = 32  # bytes


def commit(nonce: bytes, text: bytes) -> bytes:
    """The commitment to one record, 32 bytes."""
    return hashlib.sha256(b"unlearn/commit/v1" + nonce + len(text).to_bytes(8, "big") + text).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1: the tree hash over leaf data, 32 bytes."""
    return root([leaf_hash(data) for data in leaves])


def request_commitment(ref: str, commitments: Sequence[bytes]) -> bytes:
    """The leaf of one request: a hash of its random ref and of the Merkle root over its records' commitments."""
    return hashlib.sha256(b"unlearn/request/v1" + ref.encode() + merkle_root(commitments)).digest()


def forget_set_root(requests: Sequence[tuple[str, bytes]]) -> bytes:
    """The Merkle root over the commitments of (ref, request commitment) pairs, sorted by ref."""
    return merkle_root([commitment for _, commitment in sorted(requests)])
