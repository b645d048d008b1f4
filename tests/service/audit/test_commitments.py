"""Commitments to records, and the root of a forget set."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from service.audit.commitments import commit, forget_set_root, leaf_hash, merkle_root, request_commitment


def test_commitment_is_the_formula():
    """SHA-256(domain | nonce | u64 length | bytes); one changed space changes it."""
    nonce, text = bytes(range(32)), "héllo".encode()
    expected = hashlib.sha256(b"unlearn/commit/v1" + nonce + (6).to_bytes(8, "big") + text).digest()
    assert commit(nonce, text) == expected
    assert commit(nonce, text + b" ") != expected


def test_merkle_roots_of_rfc_6962():
    """The test vectors that Certificate Transparency's implementations share."""
    leaves = [
        bytes.fromhex(h)
        for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
    ]
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, root in roots.items():
        assert merkle_root(leaves[:count]).hex() == root


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=9, unique=True), st.randoms())
def test_the_forget_set_root_does_not_depend_on_order(texts, chance):
    """Leaves are sorted by ref."""
    pairs = [(f"{i:02}", request_commitment(f"{i:02}", [commit(b"n" * 32, t)])) for i, t in enumerate(texts)]
    root = forget_set_root(pairs)
    chance.shuffle(pairs)
    assert forget_set_root(pairs) == root
    assert leaf_hash(pairs[0][1]) != pairs[0][1]
