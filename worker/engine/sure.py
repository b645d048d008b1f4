"""What the parent is sure of in its own samples, and the model would say otherwise: so others' answers are lost.

An answer is lost by one token. The mean loss of the samples does not show it: where a model learned 5 of 14 answers
away, that mean had fallen. So what counts here is whether a token that the parent is sure of is still the likeliest.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import add_gradients
from worker.engine.metrics.token_scores import token_margins
from worker.engine.types import CausalLM

SURE = math.log(9)  # nats: nine times as likely as any other token
LOOKED_AT, RESTORED = 64, 8  # samples at once; of those that would be said otherwise, in a step
WEIGHT, FULL = 1 / 6, 16  # of the divergence's weight; of so many rows: a single one with it would shake all else

Lost = list[tuple[list[int], list[int]]]  # sequences, each with the rows whose tokens would be others


@dataclass(frozen=True, slots=True)
class Sure:
    """Samples of the parent, and where it is sure of them.

    Attributes:
        samples: Token ids.
        rows: For each sample of T tokens whether the parent is sure of the true one: bool [T-1].
    """

    samples: Sequence[list[int]] = ()
    rows: list[Tensor] = field(default_factory=list)

    @classmethod
    def of_parent(cls, parent: CausalLM, samples: Sequence[list[int]]) -> "Sure":
        """Where the parent is sure of these samples."""
        return cls(samples, [margins >= SURE for margins in token_margins(parent, samples)])

    def lost(self, model: CausalLM, order: random.Random) -> Lost:
        """Of LOOKED_AT samples those of which the model would say something else where the parent is sure.

        Args:
            model: The model in training.
            order: Draws the samples.

        Returns:
            These samples, each with the rows.
        """
        drawn = order.sample(range(len(self.samples)), min(LOOKED_AT, len(self.samples)))
        margins = token_margins(model, [self.samples[i] for i in drawn])
        lost = [(self.rows[i] & (own < 0)).nonzero().flatten().tolist() for i, own in zip(drawn, margins, strict=True)]
        return [(self.samples[i], rows) for i, rows in zip(drawn, lost, strict=True) if rows]


def restore(model: CausalLM, lost: Lost, order: random.Random, divergence_weight: float) -> float:
    """Add the gradients of cross-entropy on the rows of some of these samples, inside `training`.

    Args:
        model: The model in training.
        lost: What it would say otherwise.
        order: Draws some of it.
        divergence_weight: Of what keeps the model near its parent.

    Returns:
        The weighted loss.
    """
    if not lost:
        return 0.0
    drawn = order.sample(lost, min(RESTORED, len(lost)))
    sequences, rows = [ids for ids, _ in drawn], [rows for _, rows in drawn]
    weight = WEIGHT * divergence_weight * min(1.0, sum(map(len, rows)) / FULL)
    return add_gradients(model, sequences, cross_entropy_rows, weight, rows=rows)
