"""Cross-entropy, and gradient ascent on it: the baseline GA, and GD, which adds cross-entropy on retain text.

Jang et al., ACL 2023, arXiv 2210.01504, Eq. 1. b: batch, s: sequence, v: vocabulary, n: rows (predicted tokens)
"""

import torch
from torch import Tensor

from worker.engine.data import IGNORE_INDEX
from worker.engine.losses.rows import loss_mean


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean next-token cross-entropy of logits [b, s, v] against labels [b, s]; the shift by one happens here."""
    return loss_mean(logits, labels, cross_entropy_rows, ignore_index=ignore_index)


def cross_entropy_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's negative log-likelihood and its gradient on the logits, softmax minus one-hot.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n].

    Returns:
        Losses [n] and gradient [n, v].
    """
    log_p = torch.log_softmax(logits, dim=-1)
    losses = -log_p.gather(-1, targets[:, None]).squeeze(-1)
    gradient = log_p.exp_()
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets] -= 1.0
    return losses, gradient


def ascent_rows(logits: Tensor, targets: Tensor, *, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Minus the cross-entropy; unbounded below, which is why it wrecks models.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n].
        margin: Not used; every forget loss has the same signature.

    Returns:
        Losses [n] and gradient [n, v].
    """
    losses, gradient = cross_entropy_rows(logits, targets)
    return -losses, gradient.neg_()
