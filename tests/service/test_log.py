"""The log's mathematics against RFC 6962's vectors, pymerkle, and everything a forger might try."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from service.audit.checkpoint import Checkpoint, Proof, UnknownSigner, open_checkpoint, sign_checkpoint
from service.audit.merkle import (
    LogError,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
)

# Certificate Transparency's reference inputs and roots (RFC 6962's implementation, merkle_tree_test).
INPUTS = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
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
LEAVES = [leaf_hash(data) for data in INPUTS]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
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
        assert set(inclusion_proof(leaves, index)) | {leaves[index]} == set(theirs)


@given(entries, st.data())
def test_every_proof_holds_and_no_other(data, choose):
    """Inclusion and consistency hold for the true tree, and fail once any hash, index or size is another."""
    leaves = [leaf_hash(entry) for entry in data]
    size, index = len(leaves), choose.draw(st.integers(0, len(leaves) - 1))
    proof = inclusion_proof(leaves, index)
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
    between = consistency_proof(leaves, older)
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


@pytest.mark.parametrize("attack", ["rewritten", "reordered", "truncated", "forked"])
def test_a_saved_checkpoint_catches(attack):
    """A log that was rewritten, reordered, truncated or forked is not consistent with what was saved of it."""
    old, size = root(LEAVES[:6]), 6
    if attack == "truncated":
        with pytest.raises(LogError, match="smaller"):
            check_consistency(size, 4, [], old, root(LEAVES[:4]))
        return
    if attack == "forked":
        fork = [*LEAVES[:5], leaf_hash(b"fork")]
        with pytest.raises(LogError, match="EQUIVOCATION"):
            check_consistency(size, 6, [], old, root(fork))
        return
    tampered = {
        "rewritten": [*LEAVES[:2], leaf_hash(b"x"), *LEAVES[3:]],
        "reordered": [LEAVES[1], LEAVES[0], *LEAVES[2:]],
    }
    with pytest.raises(LogError, match="beginning"):
        check_consistency(size, 8, consistency_proof(tampered[attack], size), old, root(tampered[attack]))


def test_a_node_is_not_a_leaf():
    """An interior node offered as an entry's hash does not verify: leaves and nodes are hashed apart."""
    node = node_hash(LEAVES[0], LEAVES[1])
    with pytest.raises(LogError):
        check_inclusion(node, 0, 8, inclusion_proof(LEAVES, 0), root(LEAVES))
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node


def test_checkpoints_are_signed_notes():
    """A note opens with its key alone; a changed size, root, origin or signature does not."""
    checkpoint = Checkpoint("example.com/log", 8, root(LEAVES))
    note = sign_checkpoint(checkpoint, KEY)
    assert open_checkpoint(note, [OTHER.public_key(), KEY.public_key()]) == checkpoint
    with pytest.raises(LogError, match="no trusted key"):
        open_checkpoint(note, [OTHER.public_key()])
    for bad in (
        note.replace("\n8\n", "\n9\n"), note.replace("example", "exampla"), note.replace("\n8\n", "\n08\n"),
        note.replace("\n\n", "\n"), "", note[:-6] + "AAAA\n", note.replace("\n8\n", "\n-8\n"),
    ):  # fmt: skip
        with pytest.raises(LogError):
            open_checkpoint(bad, [KEY.public_key()])


def test_proof_files_round_trip_and_tell():
    """What is written is read; a changed entry, index or path does not check."""
    note = sign_checkpoint(Checkpoint("example.com/log", 8, root(LEAVES)), KEY)
    proof = Proof(INPUTS[3], 3, inclusion_proof(LEAVES, 3), note)
    assert Proof.loads(proof.dumps()) == proof
    assert proof.check([KEY.public_key()]).size == 8
    for bad in (
        Proof(b"x", 3, proof.path, note),
        Proof(INPUTS[3], 2, proof.path, note),
        Proof(INPUTS[3], 3, proof.path[:-1], note),
    ):
        with pytest.raises(LogError):
            Proof.loads(bad.dumps()).check([KEY.public_key()])
    for content in ("", "c2sp.org/tlog-proof@v1\nindex 0\n\n", proof.dumps().replace("index 3", "index x")):
        with pytest.raises(LogError):
            Proof.loads(content)


def said(check, *arguments) -> str:
    """The words of a refusal."""
    with pytest.raises(LogError) as caught:
        check(*arguments)
    return str(caught.value)


def test_every_refusal_says_which():
    """The words are what an auditor sees: each for its own cause, at the edges of each."""
    one, whole, proof = root(LEAVES[:1]), root(LEAVES), inclusion_proof(LEAVES, 3)
    inclusion = [
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
    for arguments, words in inclusion:
        assert said(check_inclusion, *arguments) == words
    check_inclusion(LEAVES[0], 0, 1, [], one)
    half, between = root(LEAVES[:6]), consistency_proof(LEAVES, 6)
    consistency = [
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
        ((4, 8, consistency_proof(LEAVES, 4), root(LEAVES[:5]), whole),
         "the older log is not the beginning of the newer one"),
    ]  # fmt: skip
    for arguments, words in consistency:
        assert said(check_consistency, *arguments) == words
    check_consistency(0, 8, [], b"whatever", whole)
    check_consistency(8, 8, [], whole, whole)
    assert said(inclusion_proof, LEAVES, 8) == said(inclusion_proof, LEAVES, -1) == "no such entry"
    for older in (9, -1):
        assert said(consistency_proof, LEAVES, older) == "the older tree is larger"
    assert consistency_proof(LEAVES, 0) == consistency_proof(LEAVES, 8) == []


def test_every_note_that_is_none_says_so():
    """Line by line: origin, size, root, the signature's line and its bytes."""
    checkpoint = Checkpoint("example.com/log", 8, root(LEAVES))
    note = sign_checkpoint(checkpoint, KEY)
    body, _, signature = note.partition("\n\n")
    origin, size, encoded = body.split("\n")
    dash, name, sig = signature.strip().split(" ")
    raw = base64.b64decode(sig)

    def refusal(*lines: str, signed: str = signature) -> str:
        return said(open_checkpoint, "\n".join(lines) + "\n\n" + signed, [KEY.public_key()])

    for lines in (
        (origin, size), (origin, size, encoded, "x"), ("", size, encoded), (origin, "x", encoded),
        (origin, "-8", encoded), (origin, "08", encoded), (origin, "", encoded), (origin, "８", encoded),
    ):  # fmt: skip
        assert refusal(*lines) == "not a checkpoint", lines
    assert said(open_checkpoint, body, [KEY.public_key()]) == "not a checkpoint"
    assert refusal(origin, size, "x") == "not base64"
    assert refusal(origin, size, encoded[:-4]) == "a hash or signature has the wrong length"
    assert refusal(origin, "9", encoded) == "the checkpoint's signature is invalid"
    wrong = base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()
    assert refusal(*body.split("\n"), signed=f"{dash} {name} {wrong}\n") == "the checkpoint's signature is invalid"
    short = base64.b64encode(raw[:-1]).decode()
    assert refusal(*body.split("\n"), signed=f"{dash} {name} {short}\n") == "a hash or signature has the wrong length"
    other_id = base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode()
    for line in (f"{dash} {name} {other_id}\n", f"{dash} other {sig}\n", f"- {name} {sig}\n", "\n", "x\n"):
        assert refusal(*body.split("\n"), signed=line) == "no trusted key signed the checkpoint", line
    with pytest.raises(UnknownSigner):
        open_checkpoint(note, [])
    cosigned = f"{dash} witness.example/w {base64.b64encode(bytes(72)).decode()}\n{signature}"
    assert open_checkpoint(f"{body}\n\n{cosigned}", [OTHER.public_key(), KEY.public_key()]) == checkpoint


def test_every_proof_that_is_none_says_so():
    """Header, entry, index, hashes, and a note behind an empty line."""
    note = sign_checkpoint(Checkpoint("example.com/log", 8, root(LEAVES)), KEY)
    proof = Proof(INPUTS[3], 3, inclusion_proof(LEAVES, 3), note)
    header, extra, index, *hashes = proof.dumps().partition("\n\n")[0].split("\n")
    assert (header, index, len(hashes)) == ("c2sp.org/tlog-proof@v1", "index 3", 3)
    assert base64.b64decode(extra.removeprefix("extra ")) == INPUTS[3]

    def refusal(*lines: str, end: str = "\n\n" + note) -> str:
        return said(Proof.loads, "\n".join(lines) + end)

    for lines in (
        (header,), (header, extra), ("x", extra, index), (header, "x", index), (header, extra, "x"),
        (header, extra, "index x"), (header, extra, "index -1"), (header, extra, "index "), (header, index, extra),
        (header, extra, "at 3"),
    ):  # fmt: skip
        assert refusal(*lines) == "not a log proof", lines
    assert refusal(header, extra, index, end="") == "not a log proof"
    assert refusal(header, "extra @", index) == "not base64"
    assert refusal(header, extra, index, "x") == "not base64"
    assert (
        refusal(header, extra, index, base64.b64encode(bytes(31)).decode())
        == "a hash or signature has the wrong length"
    )
    assert Proof.loads(f"{header}\n{extra}\n{index}\n\n{note}").path == []


def test_each_size_is_the_beginning_of_each_later_one():
    """All pairs up to 32: whatever way through RFC 9162, 2.1.4.2, a pair of sizes takes."""
    leaves = [leaf_hash(bytes([i])) for i in range(32)]
    roots = [root(leaves[:size]) for size in range(33)]
    for size in range(1, 33):
        for older in range(1, size + 1):
            check_consistency(older, size, consistency_proof(leaves[:size], older), roots[older], roots[size])
