"""Losses on the forget set, one file each and one line here.

A loss is a row loss (`losses/rows.py`): it takes `(logits [n, v], targets [n], *, margin)` and returns each row's
loss, which training minimises, and its gradient on the logits in closed form. Some take a third tensor: the parent's
logits, or weights that depend on the likelihood of the whole sequence. `distil` has a training loop of its own,
`worker.engine.distil`, and `rmu` works on hidden states (`losses/rmu.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.engine.losses.ascent import ascent_rows
from worker.engine.losses.baselines import (
    altpo_weights,
    npo_weights,
    simnpo_weights,
    undial_rows,
    weighted_ascent_rows,
    wga_rows,
)
from worker.engine.losses.ihl import inverted_hinge_rows


@dataclass(frozen=True, slots=True)
class ForgetLoss:
    """A loss on the forget set, and what training adds to it.

    Attributes:
        rows: The row loss; None for RMU.
        retain: What is added on retain text: "cross_entropy", "divergence" from the parent, the change of
            "hidden_states", or None.
        of_parent: The third argument of the row loss is the parent's logits.
        weights: Makes the third argument: (log p [b], the parent's log p [b], lengths [b]) -> weight [b] of each
            sequence.
        alternates: The batch is followed by as many other texts, which the loss prefers.
    """

    rows: Callable[..., tuple[Tensor, Tensor]] | None
    retain: str | None = "cross_entropy"
    of_parent: bool = False
    weights: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    alternates: bool = False


LOSSES: dict[str, ForgetLoss] = {
    "ihl": ForgetLoss(inverted_hinge_rows),
    "gd": ForgetLoss(ascent_rows),
    "ga": ForgetLoss(ascent_rows, retain=None),
    "kl": ForgetLoss(ascent_rows, retain="divergence"),
    "wga": ForgetLoss(wga_rows),
    "undial": ForgetLoss(undial_rows, of_parent=True),
    "npo": ForgetLoss(weighted_ascent_rows, weights=npo_weights),
    "simnpo": ForgetLoss(weighted_ascent_rows, weights=simnpo_weights),
    "altpo": ForgetLoss(weighted_ascent_rows, weights=altpo_weights, alternates=True),
    "rmu": ForgetLoss(None, retain="hidden_states"),
}
