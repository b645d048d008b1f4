"""Certificate Transparency's reference inputs, and what a check says when it refuses."""

import pytest

from service.audit.merkle import (
    LogError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    over,
)

# Certificate Transparency's reference inputs and roots (RFC 6962's implementation, merkle_tree_test).
INPUTS = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
LEAVES = [leaf_hash(data) for data in INPUTS]


def said(check, *arguments) -> str:
    """The words of a refusal."""
    with pytest.raises(LogError) as caught:
        check(*arguments)
    return str(caught.value)


def inclusion(leaves: list[bytes], index: int) -> list[bytes]:
    """The inclusion proof of a leaf in the tree over all leaves."""
    return inclusion_proof(over(leaves), len(leaves), index)


def consistency(leaves: list[bytes], older: int) -> list[bytes]:
    """The proof that the tree over all leaves begins with the first `older`."""
    return consistency_proof(over(leaves), len(leaves), older)
