"""Tokens of its samples that the parent is sure of and the model would no longer say: others' answers are lost by them.

An answer is lost by one token. The mean loss of the samples does not show it: where 5 of 14 answers were lost, it had
fallen. So what counts here is whether a token that the parent is sure of is still the likeliest one.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from worker.engine.adapter import Adapter
from worker.engine.data import chunks
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import add_gradients
from worker.engine.metrics.token_scores import token_margins
from worker.engine.options import Options
from worker.engine.parent import without_adapter
from worker.engine.types import CausalLM

LEAST_MARGIN = math.log(9)  # nats: the parent is sure of a token nine times as likely as any other
DRAWN = 64  # samples that are read at once
RESTORED = 8  # samples in a step
WEIGHT = 1 / 6  # of `divergence_weight`
FULL_ROWS = 16  # rows that have the whole weight; fewer have less, so that one token does not shake all others

LostRows = list[tuple[list[int], list[int]]]  # sequences, each with its lost rows


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
    def of_parent(cls, model: CausalLM, adapter: Adapter, samples: Sequence[list[int]]) -> "Sure":
        """Where the parent, the model without its adapter, is sure of these samples."""
        with without_adapter(adapter):
            return cls(samples, [margins >= LEAST_MARGIN for margins in token_margins(model, samples)])

    def lost(self, model: CausalLM, order: random.Random) -> LostRows:
        """Draw DRAWN samples; return those with a lost row: the parent is sure, and the model would say another token.

        Args:
            model: The model in training.
            order: Draws the samples.

        Returns:
            These samples, each with its lost rows.
        """
        drawn = order.sample(range(len(self.samples)), min(DRAWN, len(self.samples)))
        margins = token_margins(model, [self.samples[i] for i in drawn])
        lost = [(self.rows[i] & (own < 0)).nonzero().flatten().tolist() for i, own in zip(drawn, margins, strict=True)]
        return [(self.samples[i], rows) for i, rows in zip(drawn, lost, strict=True) if rows]


def restore(model: CausalLM, lost: LostRows, order: random.Random, options: Options) -> float:
    """Add the gradients of cross-entropy on the lost rows of some samples, inside `training`.

    Args:
        model: The model in training.
        lost: Samples with their lost rows.
        order: Draws RESTORED of them.
        options: The weight of the divergence, and how many tokens one backward pass takes.

    Returns:
        The weighted mean over the rows.
    """
    drawn = order.sample(lost, min(RESTORED, len(lost)))
    size = max(1, options.most_tokens // max((len(ids) for ids, _ in drawn), default=1))
    each, total = WEIGHT * options.divergence_weight / max(FULL_ROWS, sum(len(rows) for _, rows in drawn)), 0.0
    for part in chunks(drawn, size):
        sequences, rows = [ids for ids, _ in part], [rows for _, rows in part]
        total += add_gradients(model, sequences, cross_entropy_rows, each * sum(map(len, rows)), rows=rows)
    return total
