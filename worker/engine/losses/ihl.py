"""Inverted Hinge Loss (Cha et al., ICLR 2025, arXiv 2408.06621, Eq. 2).

b: batch, s: sequence, v: vocabulary
"""

import torch
from torch import Tensor


def inverted_hinge_loss(logits: Tensor, labels: Tensor, *, margin: float = 1.0, ignore_index: int = -100) -> Tensor:
    """Mean over predicted tokens of `max(0, margin + p(x_t) - max over v != x_t of p(v))`.

    Minimising it hands the token's probability to the runner-up instead of to the whole vocabulary, which is
    what gradient ascent does. With the paper's margin of 1 the max never clips, since the difference of two
    probabilities is at least -1; a smaller margin gives a real stop. The gradient on the logits is the
    paper's Appendix A: with p_t = p(x_t), p_s = max over v != x_t of p(v),
    `p_t (1 - p_t + p_s)` at x_t, `-p_s (1 - p_s + p_t)` at the runner-up, `p_v (p_s - p_t)` elsewhere.

    Args:
        logits: [b, s, v], of the positions in order; the shift by one happens here.
        labels: [b, s], the input ids; `ignore_index` where there is nothing to predict.
        margin: The hinge's margin.
        ignore_index: The label that marks positions without a prediction.

    Returns:
        A scalar, float32 or wider; 0 if no label counts.
    """
    targets = labels[:, 1:].reshape(-1)  # [n]
    counted = targets != ignore_index
    targets = targets[counted]
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])[counted]  # [n, v]
    probabilities = torch.softmax(rows.float() if rows.dtype != torch.float64 else rows, dim=-1)
    target = probabilities.gather(-1, targets[:, None]).squeeze(-1)  # [n]
    is_target = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(-1, targets[:, None], True)
    runner_up = probabilities.masked_fill(is_target, -1.0).amax(-1)  # [n]
    losses = torch.clamp(margin + target - runner_up, min=0.0)
    return losses.sum() / max(int(counted.sum()), 1)
