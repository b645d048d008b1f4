"""The schedule of a distillation: which steps an epoch has, at which learning rates, and how far they bring the run.

First come the fixed steps, in epochs of `DISTIL_EPOCH_STEPS`. Shorter epochs at one small learning rate follow, until
the criterion is met. One that met it with too much harm is followed by epochs that settle: these have as many steps as
the first ones, and what is kept weighs more there. (Five steps of the usual weights did not bring back what neighbours
had lost. Such an epoch may end just over the criterion; then the next one presses.)
"""

from typing import NamedTuple

from worker.engine.checkpoint import Checkpoint
from worker.engine.options import DISTIL_EPOCH_STEPS, Options

WARM_UP = 0.1  # share of the fixed steps
WIDTH_RATE = 0.4  # the learning rate times the hidden size
LAST_STEPS, LAST_RATE = 5, 0.1  # of an epoch after the fixed steps; the share of the learning rate there
KEEPING = 4.0  # the weight of what is kept, in an epoch that settles


class Schedule(NamedTuple):
    """The steps of one epoch.

    Attributes:
        steps: Their numbers.
        presses: Whether the epoch presses on what is over a limit.
        keeping: How many times its usual weight what is kept has.
    """

    steps: range
    presses: bool = False
    keeping: float = 1.0

    @classmethod
    def after(cls, before: Checkpoint, options: Options) -> "Schedule":
        """The schedule of the epoch that follows this checkpoint."""
        late = before.epoch - options.distil_epochs
        if late < 0:
            first = before.epoch * DISTIL_EPOCH_STEPS
            return cls(range(first, min(first + DISTIL_EPOCH_STEPS, options.distil_steps)))
        first = options.distil_steps + late * LAST_STEPS
        if before.passing and before.history[-1]["met"]:
            return cls(range(first, first + DISTIL_EPOCH_STEPS), keeping=KEEPING)
        return cls(range(first, first + LAST_STEPS), presses=True)

    def done(self, step: int, options: Options) -> float:
        """How far this step brings the run, 0..1; each epoch after the fixed steps counts as LAST_STEPS."""
        first = self.steps.start
        counted = len(self.steps) if first < options.distil_steps else LAST_STEPS
        most = options.distil_steps + options.max_epochs * LAST_STEPS
        return (first + counted * (step + 1 - first) / len(self.steps)) / most


def learning_rate(step: int, options: Options, hidden_size: int) -> float:
    """The learning rate of a step: a rise, then a straight fall to nothing. Wider models take smaller steps."""
    highest = options.distil_learning_rate or WIDTH_RATE / hidden_size
    if step >= options.distil_steps:
        return highest * LAST_RATE
    done = (step + 1) / (options.distil_steps + 1)
    return highest * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
