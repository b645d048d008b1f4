"""LoRA's own start (Hu et al. 2021): A random, B zero.

d: output features, k: input features, r: rank
"""

import math

import torch
from torch import Tensor


def standard_factors(
    weight: Tensor,
    importance: Tensor | None,
    rank: int,
    scale: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A uniform in +-1/sqrt(k) (Kaiming with a = sqrt(5), as LoRA's code has it) and B = 0.

    Args:
        weight: [d, k]; only its shape and device are used.
        importance: Not used.
        rank: r, at most min(d, k).
        scale: Not used.
        generator: For A; None seeds one with 0.

    Returns:
        A [r, k] and B [d, r], float32.
    """
    d, k = weight.shape
    rank = min(rank, d, k)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    a = (torch.rand(rank, k, generator=generator) * 2 - 1) / math.sqrt(k)
    return a.to(weight.device), torch.zeros(d, rank, device=weight.device)
