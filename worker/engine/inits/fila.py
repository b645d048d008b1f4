"""Fisher-weighted LoRA initialisation (Cha et al., section 3.3, Eq. 7 and 8).

d: output features, k: input features, r: rank, c: LoRA scale
"""

import torch
from torch import Tensor

OVERSAMPLING = 8
POWER_ITERATIONS = 4


def fila_factors(
    weight: Tensor,
    importance: Tensor,
    rank: int,
    scale: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The rank-r factors that are closest to W where rows matter: min ||diag(w) (W - c B A)||.

    With U S V^T the rank-r SVD of diag(w) W: `A* = sqrt(S / c) V^T` and `B* = diag(1/w) U sqrt(S / c)`. The
    latter equals `W V / sqrt(c S)`, which divides by no w, so a row of importance 0 is no problem; and
    `c B* A* = W V V^T`. (The paper's objective and its code have one power of a half on w; its printed solution does
    not.)

    Args:
        weight: [d, k].
        importance: [d], w; its scale does not change B* A*.
        rank: r, at most min(d, k).
        scale: c = alpha / r.
        generator: For the randomised SVD; None seeds one with 0, so the same input gives the same factors.

    Returns:
        A* [r, k] and B* [d, r], float32.
    """
    base = weight.detach().float()
    weighted = importance.float()[:, None] * base
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    singular, right = _randomised_svd(weighted, min(rank, *base.shape), generator)  # [r], [k, r]
    root = (singular / scale).sqrt().clamp(min=1e-12)
    a = root[:, None] * right.T
    b = (base @ right) / (scale * root)
    return a, b


def pissa_factors(
    weight: Tensor, _: Tensor | None, rank: int, scale: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """FILA where all rows count alike: the principal components (PiSSA, Meng et al., 2024, arXiv 2404.02948, Eq. 2, 3).

    Args:
        weight: [d, k].
        rank: r, at most min(d, k).
        scale: c = alpha / r.
        generator: As in `fila_factors`.

    Returns:
        A [r, k] and B [d, r], float32.
    """
    return fila_factors(weight, torch.ones(weight.shape[0], device=weight.device), rank, scale, generator)


def _randomised_svd(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Leading singular values [r] and right vectors [k, r] (Halko, Martinsson & Tropp 2011, alg. 4.4)."""
    width = min(rank + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    _, singular, right_t = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return singular[:rank], right_t[:rank].T
