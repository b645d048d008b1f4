"""FILA's factors."""

import torch

from tests.worker.engine.adapters import RANK, SCALE
from worker.engine import fila_factors
from worker.engine.inits import INITS


def test_fila_factors_are_the_weighted_projection():
    """c B* A* = W V V^T with V from the SVD of diag(w) W; the scale of w does not matter, nor a zero row."""
    torch.manual_seed(0)
    weight = torch.randn(24, 16) @ torch.diag(torch.linspace(3, 0.1, 16))
    importance = torch.rand(24) + 0.1
    importance[3] = 0.0
    a, b = fila_factors(weight, importance, RANK, SCALE)
    v = torch.linalg.svd(importance[:, None] * weight).Vh[:RANK].T
    assert a.shape == (RANK, 16)
    assert b.shape == (24, RANK)
    torch.testing.assert_close(SCALE * b @ a, weight @ v @ v.T, atol=1e-3, rtol=1e-3)
    a2, b2 = fila_factors(weight, 7 * importance, RANK, SCALE)
    torch.testing.assert_close(b2 @ a2, b @ a, atol=1e-4, rtol=1e-3)


def test_fila_split_matches_the_paper():
    """Where no row is dead, B* = diag(1/w) U sqrt(S/c) and A* = sqrt(S/c) V^T, up to signs."""
    torch.manual_seed(1)
    weight, importance = torch.randn(20, 12), torch.rand(20) + 0.5
    a, b = fila_factors(weight, importance, RANK, SCALE)
    u, s, vh = torch.linalg.svd(importance[:, None] * weight, full_matrices=False)
    root = (s[:RANK] / SCALE).sqrt()
    torch.testing.assert_close(a.abs(), (root[:, None] * vh[:RANK]).abs(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(b.abs(), (u[:, :RANK] * root / importance[:, None]).abs(), atol=2e-3, rtol=2e-3)


def test_pissa_is_the_plain_svd():
    """c B A = W V V^T with V from the SVD of W itself."""
    torch.manual_seed(2)
    weight = torch.randn(20, 12) @ torch.diag(torch.linspace(3, 0.1, 12))
    a, b = INITS["pissa"].factors(weight, None, RANK, SCALE)
    v = torch.linalg.svd(weight).Vh[:RANK].T
    torch.testing.assert_close(SCALE * b @ a, weight @ v @ v.T, atol=1e-3, rtol=1e-3)


def test_fila_is_reproducible():
    """The randomised SVD has a generator of its own: the same bytes each time."""
    weight, importance = torch.randn(40, 30), torch.ones(40)
    first, second = (fila_factors(weight, importance, RANK, SCALE) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
