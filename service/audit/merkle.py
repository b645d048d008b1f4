"""Merkle trees over the transparency log's entries, and proofs about them. No database, no network.

A leaf is SHA-256(0x00 | entry). A node is SHA-256(0x01 | left | right). See RFC 6962, section 2.1.

    inclusion proof      shows that a tree holds entry i                RFC 9162, section 2.1.3.2
    consistency proof    shows that a tree begins with an older tree    RFC 9162, section 2.1.4.2
"""

import hashlib
from collections.abc import Callable, Sequence

HASH_BYTES = 32
Subtree = Callable[[int, int], bytes]  # start, end -> the root over the leaves from `start` to `end`


class LogError(ValueError):
    """A proof or checkpoint is invalid or unreadable; the message says which and why."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry, 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of the tree over leaf hashes; the root of the empty tree is the SHA-256 of no bytes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:  # pair from the left; an odd last node rises unchanged, which gives the split of RFC 6962
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def over(leaves: Sequence[bytes]) -> Subtree:
    """The subtrees of the tree over these leaf hashes."""
    return lambda start, end: root(leaves[start:end])


def inclusion_proof(subtree: Subtree, size: int, index: int) -> list[bytes]:
    """The hashes that give the root of the tree of `size` leaves together with leaf `index` (RFC 9162, 2.1.3.1).

    Raises:
        LogError: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise LogError("no such entry")
    start, end, path = 0, size, []
    while end - start > 1:
        middle = start + split(end - start)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    return path[::-1]


def consistency_proof(subtree: Subtree, size: int, older: int) -> list[bytes]:
    """The hashes that show that the tree of `size` leaves begins with the tree of its first `older` leaves.

    It is SUBPROOF of RFC 9162, section 2.1.4.1.

    Raises:
        LogError: The older tree is larger than this one.
    """
    if not 0 <= older <= size:
        raise LogError("the older tree is larger")
    if older in (0, size):
        return []
    start, end, path = 0, size, []
    while older < end:
        middle = start + split(end - start)
        if older <= middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    return [*([subtree(start, end)] if start else []), *path[::-1]]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> None:
    """Check that the leaf is at `index` in the tree of `size` leaves whose root is `expected`.

    Raises:
        LogError: The leaf is not there, or the proof has the wrong length.
    """
    if not 0 <= index < size:
        raise LogError("the index lies outside the tree")
    computed, first, last, siblings = leaf, index, size - 1, list(proof)
    while siblings:
        if last == 0:
            raise LogError("the inclusion proof is too long")
        sibling = siblings.pop(0)
        if first % 2 or first == last:
            computed = node_hash(sibling, computed)
            while first % 2 == 0 and first:
                first, last = first >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        first, last = first >> 1, last >> 1
    if last:
        raise LogError("the inclusion proof is too short")
    if computed != expected:
        raise LogError("the entry is not in the log at that index")


def check_consistency(  # noqa: C901  # follows the RFC step by step
    older: int, newer: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check that the newer tree begins with the older tree.

    Raises:
        LogError: It does not: the log was rewritten, reordered, truncated or forked.
    """
    if older > newer:
        raise LogError("the log has become smaller")
    if older in (0, newer):
        if proof:
            raise LogError("the consistency proof is too long")
        if older and old_root != new_root:
            raise LogError("EQUIVOCATION: two logs of the same size have different roots")
        return
    hashes = list(proof) if older & (older - 1) else [old_root, *proof]
    if not hashes:
        raise LogError("the consistency proof is too short")
    first, last = older - 1, newer - 1
    while first % 2:
        first, last = first >> 1, last >> 1
    old = new = hashes.pop(0)
    for sibling in hashes:
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
