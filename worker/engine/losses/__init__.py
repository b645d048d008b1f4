"""Losses on the forget set, one file each and one line here.

A loss takes `(logits [b, s, v], labels [b, s], *, margin)` and returns a scalar to be minimised.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.engine.losses.ascent import negative_cross_entropy
from worker.engine.losses.ihl import inverted_hinge_loss


@dataclass(frozen=True, slots=True)
class ForgetLoss:
    """A loss on the forget set and whether cross-entropy on retain text is added to it."""

    function: Callable[..., Tensor]
    uses_retain: bool


LOSSES: dict[str, ForgetLoss] = {
    "ihl": ForgetLoss(inverted_hinge_loss, uses_retain=True),
    "gd": ForgetLoss(negative_cross_entropy, uses_retain=True),
    "ga": ForgetLoss(negative_cross_entropy, uses_retain=False),
}
