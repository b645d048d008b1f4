"""Inverted Hinge Loss (Cha et al., ICLR 2025, arXiv 2408.06621, Eq. 2, gradient: Appendix A).

b: batch, s: sequence, v: vocabulary, n: rows (predicted tokens)
"""

from functools import partial

import torch
from torch import Tensor

from worker.engine.data import IGNORE_INDEX
from worker.engine.losses.rows import loss_mean


def inverted_hinge_loss(
    logits: Tensor, labels: Tensor, *, margin: float = 1.0, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Mean over predicted tokens of `max(0, margin + p(x_t) - max over v != x_t of p(v))`.

    Minimising it moves the token's probability to the runner-up; gradient ascent spreads it over the whole vocabulary
    instead. With the paper's margin of 1 the max never clips, since the difference of two probabilities is at least
    -1; a smaller margin makes training stop.

    Args:
        logits: [b, s, v], of the positions in order; the shift by one happens here.
        labels: [b, s], the input ids; `ignore_index` where there is nothing to predict.
        margin: The hinge's margin.
        ignore_index: The label that marks positions without a prediction.

    Returns:
        A scalar, float32 or wider; 0 if no label counts.
    """
    return loss_mean(logits, labels, partial(inverted_hinge_rows, margin=margin), ignore_index=ignore_index)


def inverted_hinge_rows(logits: Tensor, targets: Tensor, *, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each row's loss and its gradient on the logits.

    With p_t = p(x_t) and p_s = max over v != x_t of p(v), where the hinge is active: `p_t (1 - p_t + p_s)` at x_t,
    `-p_s (1 - p_s + p_t)` at the runner-up, `p_v (p_s - p_t)` elsewhere.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n], x_t.
        margin: The hinge's margin.

    Returns:
        Losses [n] and gradient [n, v].
    """
    probabilities = torch.softmax(logits, dim=-1)
    at_target = targets[:, None]
    target = probabilities.gather(-1, at_target)  # [n, 1]
    runner_up, at_runner_up = probabilities.scatter_(-1, at_target, -1.0).max(-1, keepdim=True)  # [n, 1]
    distance = margin + target - runner_up
    active = (distance > 0).to(logits.dtype)
    gradient = probabilities.mul_((runner_up - target) * active)  # elsewhere; both are set below
    gradient.scatter_(-1, at_target, target * (1 - target + runner_up) * active)
    gradient.scatter_(-1, at_runner_up, -runner_up * (1 - runner_up + target) * active)
    return distance.clamp(min=0.0).squeeze(-1), gradient
