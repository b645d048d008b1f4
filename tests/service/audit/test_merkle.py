"""Merkle trees: published vectors, pymerkle's roots and proofs, and every refusal."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from service.audit.merkle import (
    LogError,
    check_consistency,
    check_inclusion,
    leaf_hash,
    node_hash,
    root,
)
from tests.service.audit.trees import LEAVES, consistency, inclusion, said

ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
entries = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def test_the_published_vectors():
    """Roots of the first one to eight inputs, and of nothing."""
    assert root([]) == hashlib.sha256(b"").digest()
    for count, expected in enumerate(ROOTS, 1):
        assert root(LEAVES[:count]).hex() == expected


@given(entries)
def test_roots_and_proofs_agree_with_pymerkle(data):
    """Another implementation gives the same roots, and its proofs' hashes are ours."""
    tree = InmemoryTree(algorithm="sha256")
    for entry in data:
        tree.append_entry(entry)
    leaves = [leaf_hash(entry) for entry in data]
    assert tree.get_root() == root(leaves)
    for index in range(len(data)):
        theirs = tree.prove_inclusion(index + 1).path
        assert set(inclusion(leaves, index)) | {leaves[index]} == set(theirs)


@given(entries, st.data())
def test_every_proof_holds_and_no_other(data, choose):
    """Inclusion and consistency hold for the true tree, and fail once any hash, index or size is another."""
    leaves = [leaf_hash(entry) for entry in data]
    size, index = len(leaves), choose.draw(st.integers(0, len(leaves) - 1))
    proof = inclusion(leaves, index)
    check_inclusion(leaves[index], index, size, proof, root(leaves))
    wrong = [
        (leaf_hash(b"another entry, longer"), index, size, proof, root(leaves)),
        (leaves[index], index, size, [*proof, bytes(32)], root(leaves)),
        (leaves[index], index, size, proof, bytes(32)),
        (leaves[index], size, size, proof, root(leaves)),
        (leaves[index], -1, size, proof, root(leaves)),
    ]
    wrong += [(leaves[index], index, size, proof[:-1], root(leaves))] if proof else []
    for position in range(len(proof)):
        changed = [*proof[:position], bytes(32), *proof[position + 1 :]]
        wrong.append((leaves[index], index, size, changed, root(leaves)))
    for arguments in wrong:
        with pytest.raises(LogError):
            check_inclusion(*arguments)
    older = choose.draw(st.integers(0, size))
    between = consistency(leaves, older)
    check_consistency(older, size, between, root(leaves[:older]), root(leaves))
    for position in range(len(between)):
        changed = [*between[:position], bytes(32), *between[position + 1 :]]
        with pytest.raises(LogError):
            check_consistency(older, size, changed, root(leaves[:older]), root(leaves))
    with pytest.raises(LogError):
        check_consistency(older, size, [*between, bytes(32)], root(leaves[:older]), root(leaves))
    if between:
        with pytest.raises(LogError):
            check_consistency(older, size, between[:-1], root(leaves[:older]), root(leaves))


def test_a_node_is_not_a_leaf():
    """An interior node offered as an entry's hash does not verify: leaves and nodes are hashed apart."""
    node = node_hash(LEAVES[0], LEAVES[1])
    with pytest.raises(LogError):
        check_inclusion(node, 0, 8, inclusion(LEAVES, 0), root(LEAVES))
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node


def test_every_refusal_says_which():
    """The words are what an auditor sees: each for its own cause, at the edges of each."""
    one, whole, proof = root(LEAVES[:1]), root(LEAVES), inclusion(LEAVES, 3)
    of_entries = [
        ((LEAVES[0], 1, 1, [], one), "the index lies outside the tree"),
        ((LEAVES[0], 0, 0, [], one), "the index lies outside the tree"),
        ((LEAVES[0], -1, 8, proof, whole), "the index lies outside the tree"),
        ((LEAVES[0], 0, 1, [one], one), "the inclusion proof is too long"),
        ((LEAVES[3], 3, 8, [*proof, one], whole), "the inclusion proof is too long"),
        ((LEAVES[3], 3, 8, proof[:-1], whole), "the inclusion proof is too short"),
        ((LEAVES[3], 3, 8, [], whole), "the inclusion proof is too short"),
        ((LEAVES[2], 3, 8, proof, whole), "the entry is not in the log at that index"),
        ((LEAVES[3], 2, 8, proof, whole), "the entry is not in the log at that index"),
    ]
    for arguments, words in of_entries:
        assert said(check_inclusion, *arguments) == words
    check_inclusion(LEAVES[0], 0, 1, [], one)
    half, between = root(LEAVES[:6]), consistency(LEAVES, 6)
    of_logs = [
        ((8, 6, [], whole, half), "the log has become smaller"),
        ((0, 8, [one], root([]), whole), "the consistency proof is too long"),
        ((8, 8, [one], whole, whole), "the consistency proof is too long"),
        ((8, 8, [], half, whole), "EQUIVOCATION: two logs of the same size have different roots"),
        ((6, 8, [], half, whole), "the consistency proof is too short"),
        ((4, 8, [], root(LEAVES[:4]), whole), "the consistency proof is too short"),
        ((6, 8, between[:-1], half, whole), "the consistency proof is too short"),
        ((6, 8, [*between, one], half, whole), "the consistency proof is too long"),
        ((6, 8, between, one, whole), "the older log is not the beginning of the newer one"),
        ((6, 8, between, half, one), "the older log is not the beginning of the newer one"),
        (
            (4, 8, consistency(LEAVES, 4), root(LEAVES[:5]), whole),
            "the older log is not the beginning of the newer one",
        ),
    ]
    for arguments, words in of_logs:
        assert said(check_consistency, *arguments) == words
    check_consistency(0, 8, [], b"whatever", whole)
    check_consistency(8, 8, [], whole, whole)
    assert said(inclusion, LEAVES, 8) == said(inclusion, LEAVES, -1) == "no such entry"
    for older in (9, -1):
        assert said(consistency, LEAVES, older) == "the older tree is larger"
    assert consistency(LEAVES, 0) == consistency(LEAVES, 8) == []


def test_each_size_is_the_beginning_of_each_later_one():
    """All pairs up to 32: whatever way through RFC 9162, 2.1.4.2, a pair of sizes takes."""
    leaves = [leaf_hash(bytes([i])) for i in range(32)]
    roots = [root(leaves[:size]) for size in range(33)]
    for size in range(1, 33):
        for older in range(1, size + 1):
            check_consistency(older, size, consistency(leaves[:size], older), roots[older], roots[size])
