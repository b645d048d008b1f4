"""How likely a model must find a true token, by how likely the reference finds it, so that a text looks unseen.

Unseen tokens have other log-likelihoods under the model than under the reference. To add the difference of the means
is not enough: whoever looks at the least likely tokens alone (min-k) looks at the tail. So each quantile of the
reference's log-likelihoods of unseen tokens is mapped to the same quantile of the model's.

k: knots
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.metrics.token_scores import token_scores
from worker.engine.types import CausalLM

QUANTILES = 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is added to the reference's log-likelihood of a true token; linear between the knots, constant beyond.

    Attributes:
        offset: How much likelier unseen tokens are to the model than to the reference, the mean in nats.
        knots: Log-likelihoods under the reference [k], ascending.
        added: What is added there [k].
    """

    offset: float
    knots: Tensor
    added: Tensor

    @classmethod
    def between(cls, reference: Tensor, model: Tensor, correction: Tensor) -> "Calibration":
        """The calibration by log-likelihoods [n] of the same unseen tokens, plus a correction at each knot [k]."""
        knots = quantiles(reference)
        return cls(float(model.mean() - reference.mean()), knots, quantiles(model) - knots + correction)

    def __call__(self, log_q: Tensor) -> Tensor:
        """What is added to each of these log-likelihoods, of any shape."""
        knots, added = self.knots.to(log_q), self.added.to(log_q)
        after = torch.searchsorted(knots, log_q.contiguous()).clamp(1, len(knots) - 1)
        before = after - 1
        share = (log_q - knots[before]) / (knots[after] - knots[before]).clamp(min=1e-6)
        return torch.lerp(added[before], added[after], share.clamp(0, 1))


def quantiles(values: Tensor) -> Tensor:
    """QUANTILES values [k] that stand for equal parts of all values [n], ascending."""
    middles = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    return values.sort().values[(middles * len(values)).long()]


def log_likelihoods(model: CausalLM, sequences: Sequence[list[int]]) -> Tensor:
    """log p of every predicted token of these sequences: [n], float64, on the CPU."""
    return torch.cat([scores.log_p for scores in token_scores(model, sequences)])
