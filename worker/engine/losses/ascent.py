"""Gradient ascent on the forget set: the baseline GA, and GD with cross-entropy on retain text beside it.

Jang et al., ACL 2023, arXiv 2210.01504, Eq. 1. b: batch, s: sequence, v: vocabulary
"""

import torch
from torch import Tensor


def negative_cross_entropy(logits: Tensor, labels: Tensor, *, margin: float = 1.0, ignore_index: int = -100) -> Tensor:
    """Minus the mean next-token cross-entropy; unbounded below, which is why it wrecks models.

    Args:
        logits: [b, s, v]; the shift by one happens here.
        labels: [b, s], the input ids; `ignore_index` where there is nothing to predict.
        margin: Taken so that every loss has one signature; it has no meaning here.
        ignore_index: The label that marks positions without a prediction.

    Returns:
        A scalar, float32 or wider.
    """
    return -cross_entropy(logits, labels, ignore_index=ignore_index)


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Mean next-token cross-entropy of logits [b, s, v] against labels [b, s], shifted by one here."""
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return torch.nn.functional.cross_entropy(rows, labels[:, 1:].reshape(-1), ignore_index=ignore_index)
