"""Signed checkpoints and proof files, and every note that is none."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.audit.checkpoint import Checkpoint, Proof, UnknownSigner, open_checkpoint, sign_checkpoint
from service.audit.merkle import (
    LogError,
    check_consistency,
    leaf_hash,
    root,
)
from tests.service.audit.trees import INPUTS, LEAVES, consistency, inclusion, said

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


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
        check_consistency(size, 8, consistency(tampered[attack], size), old, root(tampered[attack]))


def test_checkpoints_are_signed_notes():
    """A note opens with its key alone; a changed size, root, origin or signature does not."""
    checkpoint = Checkpoint("example.com/log", 8, root(LEAVES))
    note = sign_checkpoint(checkpoint, KEY)
    assert open_checkpoint(note, [OTHER.public_key(), KEY.public_key()]) == checkpoint
    with pytest.raises(LogError, match="no trusted key"):
        open_checkpoint(note, [OTHER.public_key()])
    for bad in (
        note.replace("\n8\n", "\n9\n"),
        note.replace("example", "exampla"),
        note.replace("\n8\n", "\n08\n"),
        note.replace("\n\n", "\n"),
        "",
        note[:-6] + "AAAA\n",
        note.replace("\n8\n", "\n-8\n"),
    ):
        with pytest.raises(LogError):
            open_checkpoint(bad, [KEY.public_key()])


def test_proof_files_round_trip_and_tell():
    """What is written is read; a changed entry, index or path does not check."""
    note = sign_checkpoint(Checkpoint("example.com/log", 8, root(LEAVES)), KEY)
    proof = Proof(INPUTS[3], 3, inclusion(LEAVES, 3), note)
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
        (origin, size),
        (origin, size, encoded, "x"),
        ("", size, encoded),
        (origin, "x", encoded),
        (origin, "-8", encoded),
        (origin, "08", encoded),
        (origin, "", encoded),
        (origin, "８", encoded),
    ):
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
    proof = Proof(INPUTS[3], 3, inclusion(LEAVES, 3), note)
    header, extra, index, *hashes = proof.dumps().partition("\n\n")[0].split("\n")
    assert (header, index, len(hashes)) == ("c2sp.org/tlog-proof@v1", "index 3", 3)
    assert base64.b64decode(extra.removeprefix("extra ")) == INPUTS[3]

    def refusal(*lines: str, end: str = "\n\n" + note) -> str:
        return said(Proof.loads, "\n".join(lines) + end)

    for lines in (
        (header,),
        (header, extra),
        ("x", extra, index),
        (header, "x", index),
        (header, extra, "x"),
        (header, extra, "index x"),
        (header, extra, "index -1"),
        (header, extra, "index "),
        (header, index, extra),
        (header, extra, "at 3"),
    ):
        assert refusal(*lines) == "not a log proof", lines
    assert refusal(header, extra, index, end="") == "not a log proof"
    assert refusal(header, "extra @", index) == "not base64"
    assert refusal(header, extra, index, "x") == "not base64"
    assert (
        refusal(header, extra, index, base64.b64encode(bytes(31)).decode())
        == "a hash or signature has the wrong length"
    )
    assert Proof.loads(f"{header}\n{extra}\n{index}\n\n{note}").path == []
