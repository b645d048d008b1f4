"""Losses that other people use, as their papers have them: WGA, UNDIAL, NPO, SimNPO, AltPO.

b: batch, n: rows (predicted tokens), v: vocabulary
"""

import torch
from torch import Tensor

from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.distil import divergence_rows

WGA_POWER = 1.0  # alpha
UNDIAL_STRENGTH = 10.0  # beta, taken from the true token's logit
NPO_BETA = ALTPO_BETA = 0.1
SIMNPO_BETA, SIMNPO_GAMMA = 2.5, 0.0


def wga_rows(logits: Tensor, targets: Tensor, *, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weighted gradient ascent (Wang et al., ICLR 2025, arXiv 2502.19301): `p(x_t)^alpha log p(x_t)`, p without
    gradient.

    A token that is unlikely already counts little, so the loss does not run away.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n], x_t.
        margin: Not used; every forget loss has the same signature.

    Returns:
        Losses [n] and gradient [n, v].
    """
    losses, gradient = cross_entropy_rows(logits, targets)
    weights = torch.exp(-WGA_POWER * losses)
    return -weights * losses, gradient.mul_(-weights[:, None])


def undial_rows(logits: Tensor, targets: Tensor, parent: Tensor, *, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """UNDIAL (Dong et al., NAACL 2025, arXiv 2402.10052): distil the parent with the true token's logit lowered.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n], x_t.
        parent: [n, v], logits of the parent.
        margin: Not used.

    Returns:
        Losses [n] and gradient [n, v].
    """
    lowered = parent.scatter_add(-1, targets[:, None], torch.full_like(parent[:, :1], -UNDIAL_STRENGTH))
    return divergence_rows(logits, targets, lowered)


def weighted_ascent_rows(
    logits: Tensor, targets: Tensor, weights: Tensor, *, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gradient ascent with a weight for each row: the gradient of NPO, SimNPO and AltPO, given their weights.

    Args:
        logits: [n, v], float32 or wider.
        targets: [n].
        weights: [n], without gradient.
        margin: Not used.

    Returns:
        Losses [n] and gradient [n, v].
    """
    losses, gradient = cross_entropy_rows(logits, targets)
    return -weights * losses, gradient.mul_(-weights[:, None])


def npo_weights(log_p: Tensor, parent: Tensor, lengths: Tensor) -> Tensor:
    """NPO (Zhang et al., COLM 2024, arXiv 2404.05868, Eq. 3): the weight of each sequence's log-likelihood.

    The loss of a sequence is `2 / beta * log(1 + (p / p_parent)^beta)`, and its derivative by log p is
    `2 sigmoid(beta (log p - log p_parent))`.

    Args:
        log_p: [b], log-likelihoods of the sequences.
        parent: [b], the parent's.
        lengths: [b], predicted tokens; not used.

    Returns:
        [b].
    """
    return 2 * torch.sigmoid(NPO_BETA * (log_p - parent))


def simnpo_weights(log_p: Tensor, parent: Tensor, lengths: Tensor) -> Tensor:
    """SimNPO (Fan et al., 2024, arXiv 2410.07163): as NPO, by the mean log-likelihood of a token and without a parent.

    The loss is `-2 / beta * log sigmoid(-beta / |y| log p - gamma)`.

    Args:
        log_p: [b], log-likelihoods of the sequences.
        parent: [b]; not used.
        lengths: [b], predicted tokens.

    Returns:
        [b].
    """
    return 2 * torch.sigmoid(SIMNPO_BETA * log_p / lengths + SIMNPO_GAMMA) / lengths


def altpo_weights(log_p: Tensor, parent: Tensor, lengths: Tensor) -> Tensor:
    """AltPO (Mekala et al., COLING 2025, arXiv 2409.13474, Eq. 5): another text is preferred to the one to forget.

    The paper's other text answers the same prompt. A text to forget has no prompt, so it is a sample of the parent.

    The loss of a pair is `-2 / beta * log sigmoid(beta (d - e))`; d and e are the changes of the log-likelihood since
    the parent, of the other text and of the one to forget. As the mean here is over both texts of each pair, weights
    are twice its derivative.

    Args:
        log_p: [2b], log-likelihoods of b sequences to forget, then of b others.
        parent: [2b], the parent's.
        lengths: [2b], predicted tokens; not used.

    Returns:
        [2b]; the other texts' weights are negative, so that they become likelier.
    """
    forget, other = (log_p - parent).chunk(2)
    weights = 4 * torch.sigmoid(ALTPO_BETA * (forget - other))
    return torch.cat([weights, -weights])
