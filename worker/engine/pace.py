"""The pace that a run finds by itself: learning rate and steps follow what the epochs before have done.

Small models need larger steps than large ones, and how far a step may go depends on the model, the texts and the
budget. So the policy's rate is only the first one. The rate rises after an epoch that brought MA hardly nearer to its
limit. Where it cannot rise any more, epochs become longer, until it falls. It falls when held-out perplexity comes near
the budget: the run's own, or what all versions together leave, the stricter of both. With IHL an epoch that trains only
on what is kept comes first, if MA is still far from its limit or perplexity is over the budget: it brings perplexity
back, and MA a little, too. The rate falls only if that was not enough: a low rate alone brings nothing back. If the
criterion was met over the budget, the steps are too large to stay within both. Then the rate falls at once, and up to
four epochs keep, as long as the criterion holds.

Few large steps reach the criterion soon, and harm what is like the forgotten: others' answers first. To hold the model
near its parent takes more steps. So with IHL, once the criterion is met, epochs follow that only repair, at lower
rates, until neighbours and the parent's samples are well within the limit. Of the epochs that meet the criterion, the
one of the least harm counts. (A rate that falls with neighbours from the first epoch on hardly moves MA any more. With
losses that repair nothing it does fall.) The pace depends on the history alone, so that a resumed run goes on with the
same.
"""

from collections.abc import Sequence
from typing import NamedTuple

from worker.engine.options import Options
from worker.engine.types import EpochEntry

RISE, FALL, FARTHEST = 2.0, 0.5, 16.0
SLOW = 0.3  # share of the distance to the limit: an epoch that closes less is slow
NEAR = 0.8  # share of the perplexity budget, and of what neighbours may lose
FAR = 0.1  # of MA, over its limit: as much as an epoch that keeps may bring back
LONGEST = 4  # times the steps of the first epoch
MOST_REPAIRS = 4  # epochs, each with one left to forget again what it brings back
MOST_KEPT = 4  # epochs that keep, one after the other, while the criterion holds
GENTLE = 0.25  # of the rate: repairs at a rate that has risen shake as much as they mend


class Pace(NamedTuple):
    """The pace of an epoch.

    Attributes:
        rate: The learning rate, at most FARTHEST times as high or as low as the policy's.
        longer: How many times as many steps as the policy's an epoch has, 1 to LONGEST.
        repairs: Whether the epoch only repairs: of the forget set it trains on what is over its goal, and on requests
            that failed a full test, and on nothing else.
        keeps: Whether the epoch trains only on what is kept.
    """

    rate: float
    longer: int
    repairs: bool = False
    keeps: bool = False


def pace(history: Sequence[EpochEntry], options: Options, parent_perplexity: float) -> Pace:
    """The pace of the next epoch.

    Args:
        history: The epochs before.
        options: The run's options: the first rate, whether it is adapted, and the limits.
        parent_perplexity: Held-out perplexity before the first epoch, on the sequences of the history.

    Returns:
        The pace. Where the last epoch met the criterion, and the next one would neither repair nor only keep,
        the run is at its end.
    """
    first = rate = options.learning_rate
    longer = 1
    if not options.adaptive:
        return Pace(first, longer)
    budget = options.max_perplexity_ratio - 1
    keeping, over_budget = 0, False  # epochs that keep in a row, the next one among them
    for index, entry in enumerate(history):
        over_budget, met = harm(entry, options, parent_perplexity)[0], bool(entry.get("met"))
        near_budget = over_budget or entry["perplexity"] / parent_perplexity - 1 > NEAR * budget
        is_far = not met and entry["ma"] - entry["ma_limit"] > FAR
        to_mend = options.holds_parent and (over_budget or (near_budget and is_far))
        may_keep = keeping < MOST_KEPT if met else not keeping and index + 2 < options.max_epochs
        kept, keeping = keeping > 0, keeping + 1 if to_mend and may_keep else 0
        if kept or keeping:  # it has mended, or the next one mends
            fell = kept and history[index - 1].get("met")
            falls = to_mend and (not fell if met else kept)
        else:
            falls = near_budget or (not options.holds_parent and _harms(entry, options))
        if falls or entry.get("repairs"):
            rate, longer = max(rate * FALL, first / FARTHEST), 1
        elif not (kept or keeping) and index and _is_slow(history[index - 1], entry):
            longer = min(longer * 2, LONGEST) if rate == first * FARTHEST else longer
            rate = min(rate * RISE, first * FARTHEST)
    if keeping:
        return Pace(rate, 1, keeps=True)
    if not over_budget and _is_to_repair(history, options):
        return Pace(max(min(rate, first), rate * GENTLE), 1, repairs=True)
    return Pace(rate, longer)


def _is_to_repair(history: Sequence[EpochEntry], options: Options) -> bool:
    """Whether the last epoch met the criterion and did harm, with epochs left to repair it.

    Where neighbours are over their limit, two suffice, one to repair and one to forget again: as it is, the run would
    hardly publish a version.
    """
    if not (options.holds_parent and history and history[-1].get("met") and _harms(history[-1], options)):
        return False
    repaired, left = sum(entry.get("repairs", 0) for entry in history), options.max_epochs - len(history)
    needed = 2 if _is_over_limit(history[-1], options) else 2 * MOST_REPAIRS - repaired
    return repaired < MOST_REPAIRS and left >= needed


def settles(history: Sequence[EpochEntry], options: Options, parent_perplexity: float) -> bool:
    """Whether a distillation that meets the criterion goes on, because it harms the rest of the model.

    Args:
        history: The epochs before.
        options: The run's options: the limits, and the last epoch.
        parent_perplexity: Held-out perplexity before the first epoch.

    Returns:
        True if the last epoch met the criterion and did harm, up to MOST_REPAIRS times, with as many epochs left. Over
        a limit one that is left suffices: as it is, the run would hardly publish a version.
    """
    met, left = sum(bool(entry["met"]) for entry in history), options.last_epoch - len(history)
    last = history[-1]
    over_budget, over_limit, _ = harm(last, options, parent_perplexity)
    needed = 1 if over_budget or over_limit else MOST_REPAIRS
    harms = over_budget or _harms(last, options)
    return bool(last["met"]) and harms and met <= MOST_REPAIRS and left >= needed


def harm(entry: EpochEntry, options: Options, parent_perplexity: float) -> tuple[bool, bool, float]:
    """How bad an epoch is for the rest of the model; of two the lower tuple is the better one.

    Args:
        entry: The epoch.
        options: The run's options: the limits.
        parent_perplexity: Held-out perplexity before the first epoch.

    Returns:
        Whether perplexity is over its budget, whether neighbours are over their limit, and what neighbours or the
        parent's samples have lost, the worse of the two, in nats a token.
    """
    over_budget = entry["perplexity"] > options.max_perplexity_ratio * parent_perplexity
    return over_budget, _is_over_limit(entry, options), _lost(entry)


def _is_over_limit(entry: EpochEntry, options: Options) -> bool:
    """Whether neighbours have lost more than they may."""
    return entry.get("neighbours_lost", 0.0) > options.max_neighbour_loss


def _lost(entry: EpochEntry) -> float:
    """What neighbours, or the parent's samples, have lost of log-likelihood a token, in nats; the worse of the two."""
    return max(entry.get("neighbours_lost", 0.0), entry.get("samples_lost", 0.0))


def _harms(entry: EpochEntry, options: Options) -> bool:
    """Whether that is nearly as much as the limit."""
    return _lost(entry) > NEAR * options.max_neighbour_loss


def _is_slow(before: EpochEntry, entry: EpochEntry) -> bool:
    """Whether an epoch brought MA hardly nearer to its limit."""
    distance = before["ma"] - before["ma_limit"]
    return distance > 0 and before["ma"] - entry["ma"] < SLOW * distance
