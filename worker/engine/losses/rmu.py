"""RMU (Li et al., ICML 2024, arXiv 2403.03218, Eq. 1 and 2): hidden states of a text to forget become noise.

Two things differ from the paper. The squares are means over the dimensions, as in the published code. And c is no
constant: it follows the mean norm of the parent's hidden states in the batch, so that one setting fits models of every
size. Adaptive RMU (Huu-Tien et al., AAAI 2025, arXiv 2408.06223) takes each state's own norm.

b: batch, s: sequence, h: hidden
"""

import torch
from torch import Tensor

SCALE = 5.0  # c, relative to the mean norm of the parent's hidden states
RETAIN_WEIGHT = 100.0  # alpha
DEPTH = 0.5  # share of the layers below the hidden states


def noise(hidden_size: int, seed: int) -> Tensor:
    """The direction u [h] of the noise, of length 1: uniform in the positive orthant, as in the published code."""
    drawn = torch.rand(hidden_size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)


def steering_loss(hidden: Tensor, parent: Tensor, counted: Tensor, direction: Tensor) -> Tensor:
    """The mean square of `h - c u` over tokens and dimensions; c is SCALE times the parent's mean norm.

    Args:
        hidden: [b, s, h].
        parent: [b, s, h], the parent's.
        counted: [b, s]; false for padding and the first token.
        direction: [h], u.

    Returns:
        A scalar.
    """
    target = SCALE * parent[counted].norm(dim=-1).mean() * direction
    return torch.nn.functional.mse_loss(hidden[counted], target.expand_as(hidden[counted]))


def keeping_loss(hidden: Tensor, parent: Tensor, counted: Tensor) -> Tensor:
    """RETAIN_WEIGHT times the mean square of what changed in the hidden states of retain text; shapes as above."""
    return torch.nn.functional.mse_loss(hidden[counted], parent[counted]) * RETAIN_WEIGHT
