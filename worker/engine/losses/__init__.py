"""Losses on the forget set, one file each and one line here.

A loss is a row loss (`losses/rows.py`): it takes `(logits [n, v], targets [n], *, margin)` and returns each row's
loss, which training minimises, and its gradient on the logits in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.engine.losses.ascent import ascent_rows
from worker.engine.losses.ihl import inverted_hinge_rows


@dataclass(frozen=True, slots=True)
class ForgetLoss:
    """A loss on the forget set, and whether training adds cross-entropy on retain text to it."""

    rows: Callable[..., tuple[Tensor, Tensor]]
    uses_retain: bool


LOSSES: dict[str, ForgetLoss] = {
    "ihl": ForgetLoss(inverted_hinge_rows, uses_retain=True),
    "gd": ForgetLoss(ascent_rows, uses_retain=True),
    "ga": ForgetLoss(ascent_rows, uses_retain=False),
}
