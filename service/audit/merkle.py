"""Merkle trees over the transparency log's entries, and proofs in them. No database, no network.

A leaf is SHA-256(0x00 | entry), a node SHA-256(0x01 | left | right), after RFC 6962, section 2.1.

    inclusion      entry i is in the tree of a checkpoint           RFC 9162, section 2.1.3.2
    consistency    a checkpoint's tree begins with an older one's   RFC 9162, section 2.1.4.2
"""

import hashlib
from collections.abc import Sequence


class LogError(ValueError):
    """A proof or checkpoint does not hold, or cannot be read; says which."""


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
