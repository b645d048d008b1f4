"""Distillation: the model is to say what a reference says, which never saw the text.

n: rows (predicted tokens), v: vocabulary
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.metrics.token_scores import TokenScores, scores_of_rows


def divergence_rows(logits: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's Kullback-Leibler divergence KL(q || p) of the model p from a reference q, and its gradient p - q.

    Args:
        logits: [n, v] of the model, float32 or wider.
        targets: [n]; not used, every row loss has them.
        reference: [n, v], logits of the reference.

    Returns:
        Losses [n] and gradient [n, v].
    """
    log_p, log_q = torch.log_softmax(logits, dim=-1), torch.log_softmax(reference.to(logits), dim=-1)
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(-1), log_p.exp_().sub_(q)


def kept_rows(
    logits: Tensor, targets: Tensor, parent: Tensor, *, divergence_weight: float = 6.0, retain_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What keeps the model as it was: the weighted divergence from the parent, and the weighted cross-entropy.

    Args:
        logits: [n, v] of the model, float32 or wider.
        targets: [n].
        parent: [n, v], logits of the parent.
        divergence_weight: Of the divergence.
        retain_weight: Of the cross-entropy.

    Returns:
        Losses [n] and gradient [n, v].
    """
    divergence, gradient = divergence_rows(logits, targets, parent)
    loss, of_loss = cross_entropy_rows(logits, targets)
    gradient.mul_(divergence_weight).add_(of_loss, alpha=retain_weight)
    return divergence_weight * divergence + retain_weight * loss, gradient


def distil_rows(
    logits: Tensor,
    targets: Tensor,
    reference: Tensor,
    *,
    token_weight: float = 0.3,
    calibration: Callable[[TokenScores], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The divergence from the reference, and the squared difference of the true token's log-likelihood.

    KL(q || p) hardly sees a true token that is five times as likely as in the reference, if both are small. Whoever
    asks whether the model knew the text sees nothing else. So `w d^2` is added, with `d = log p(x_t) - log q(x_t) - a`.
    It is two-sided: a text that is less likely than an unseen one is recognisable, too. Its gradient on the logits is
    `2 w d (onehot - p)`.

    Args:
        logits: [n, v] of the model, float32 or wider.
        targets: [n], x_t.
        reference: [n, v], logits of the reference.
        token_weight: w.
        calibration: Gives by the reference's scores of x_t two things [n]: a, how much likelier such tokens must be to
            the model than to the reference, and the factor of the reference's logits in the divergence; the scores are
            without it.

    Returns:
        Losses [n] and gradient [n, v].
    """
    at_target, reference = targets[:, None], reference.to(logits)
    says = scores_of_rows(reference, targets)
    added, sharpness = (values.to(logits)[:, None] for values in calibration(says))
    losses, gradient = divergence_rows(logits, targets, reference * sharpness)
    log_p = torch.log_softmax(logits, dim=-1)
    difference = log_p.gather(-1, at_target) - says.log_p.to(logits)[:, None] - added  # [n, 1]
    slope = 2 * token_weight * difference
    gradient.sub_(slope * log_p.exp_())
    gradient.scatter_add_(-1, at_target, slope)
    return losses + token_weight * difference.squeeze(-1) ** 2, gradient
