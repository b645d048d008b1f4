"""The pace that a run finds by itself: learning rate and steps follow what the epochs before have done.

Small models need larger steps than large ones, and how far a step may go depends on the model, the texts and the
budget. So the policy's rate is only the first one. The rate rises after an epoch that brought MA hardly nearer to its
limit, and falls when held-out perplexity comes near the budget. Where it cannot rise any more, epochs become longer.

Few large steps reach the criterion soon, and harm what is like the forgotten: others' answers first. What holds the
model near its parent needs more steps than that. So once the criterion is met, epochs follow that only repair, each at
half the rate of the one before, until neighbours and the parent's samples are within their limit. (A rate that falls
with them from the first epoch on hardly moves MA any more.) The pace depends on the history alone, so that a resumed run goes on with the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

from worker.engine.options import Options
from worker.engine.types import EpochEntry

RISE, FALL, FARTHEST = 2.0, 0.5, 16.0
SLOW = 0.3  # share of the distance to the limit: an epoch that closes less is slow
NEAR = 0.8  # share of the perplexity budget, and of what neighbours may lose
LONGEST = 4  # times the steps of the first epoch
MOST_REPAIRS = 4  # epochs; no more than a run has left to forget again what they bring back


class Pace(NamedTuple):
    """The pace of an epoch.

    Attributes:
        rate: The learning rate, at most FARTHEST times as high or as low as the policy's.
        longer: How many times as many steps as the policy's an epoch has, 1 to LONGEST.
        repairs: Whether the epoch only repairs: it trains on no sequence that has reached its goal.
    """

    rate: float
    longer: int
    repairs: bool = False


def pace(history: Sequence[EpochEntry], options: Options, parent_perplexity: float) -> Pace:
    """The pace of the next epoch.

    Args:
        history: The epochs before.
        options: The run's options: the first rate, whether it is adapted, and the limits.
        parent_perplexity: Held-out perplexity before the first epoch, on the sequences of the history.

    Returns:
        The pace. Where the last epoch met the criterion and the pace is to repair nothing, the run is at its end.
    """
    first = rate = options.learning_rate
    longer = 1
    if not options.adaptive:
        return Pace(first, longer)
    budget = options.max_perplexity_ratio - 1
    for index, entry in enumerate(history):
        if entry["perplexity"] / parent_perplexity - 1 > NEAR * budget or entry.get("repairs"):
            rate = max(rate * FALL, first / FARTHEST)
        elif index and _is_slow(history[index - 1], entry):
            longer = min(longer * 2, LONGEST) if rate == first * FARTHEST else longer
            rate = min(rate * RISE, first * FARTHEST)
    return Pace(rate, longer, bool(history) and _leaves_harm(history, options))


def _leaves_harm(history: Sequence[EpochEntry], options: Options) -> bool:
    """Whether the last epoch met the criterion and left something to repair, with epochs left to do it."""
    repaired, last = sum(entry.get("repairs", 0) for entry in history), history[-1]
    left = options.max_epochs - len(history)
    may = repaired < MOST_REPAIRS and left >= 2 * MOST_REPAIRS - repaired
    lost = max(last.get("neighbours_lost", 0.0), last.get("samples_lost", 0.0))
    return bool(may and last.get("met") and lost > NEAR * options.max_neighbour_loss)


def _is_slow(before: EpochEntry, entry: EpochEntry) -> bool:
    """Whether an epoch brought MA hardly nearer to its limit."""
    distance = before["ma"] - before["ma_limit"]
    return distance > 0 and before["ma"] - entry["ma"] < SLOW * distance
