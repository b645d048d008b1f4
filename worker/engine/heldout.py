"""Is held-out text unseen? Text that the parent knows by heart sets limits that a memorised request would meet.

A few known texts are borne: they are left out of thresholds and of what attacks compare with. Licences and well-known
quotations stand in any large corpus. More than a few are refused.
"""

from collections.abc import Sequence
from statistics import median

from worker.engine.criterion import MIN_HELDOUT
from worker.engine.errors import HeldoutKnown
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.token_scores import token_scores
from worker.engine.prepare import Prepared
from worker.engine.types import CausalLM

KNOWN_MA = 0.9  # nobody guesses so much of a text
LEAST_OVER, DEVIATIONS = 0.25, 4.0  # over the median MA; the deviations are robust ones (1.4826 x the median deviation)
LEAST_GAIN = 1.0  # nats a token over the median of what fine-tuning from the base gained
FEWEST_TOKENS = 16  # predicted ones; fewer are guessed by chance
MOST_KNOWN = 0.1  # share of the held-out texts


def known_and_unseen(
    model: CausalLM, data: Prepared, of_base: Sequence[float] | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """The held-out sequences that the parent knows by heart, and the others of those that set thresholds.

    If too few others are left, held-out sequences that set no threshold take the place of known ones.

    Args:
        model: The parent.
        data: The sets of the run.
        of_base: What the base says of the sequences (`heldout_likelihoods`); None without a base.

    Returns:
        Both.

    Raises:
        HeldoutKnown: The parent knows more than a tenth of the held-out texts by heart, or too few others are left.
    """
    known = known_by_heart(model, _all_heldout(data), of_base)
    unseen = [ids for ids in data.threshold_sequences if ids not in known]
    if known:
        unseen += [ids for ids in data.only_utility if ids not in known][: max(0, MIN_HELDOUT - len(unseen))]
        if len(unseen) < MIN_HELDOUT:
            raise HeldoutKnown(f"heldout: the model knows {len(known)} texts by heart; of the others too few are left")
    return known, unseen


def heldout_likelihoods(model: CausalLM, data: Prepared) -> list[float]:
    """The mean log-likelihood a token of each held-out sequence of a run, in nats."""
    return _likelihoods(model, _all_heldout(data))


def _all_heldout(data: Prepared) -> list[list[int]]:
    return [*data.threshold_sequences, *data.only_utility]


def _likelihoods(model: CausalLM, sequences: Sequence[list[int]]) -> list[float]:
    return [float(scores.log_p.mean()) for scores in token_scores(model, sequences)]


def known_by_heart(
    model: CausalLM, heldout: Sequence[list[int]], of_base: Sequence[float] | None = None
) -> list[list[int]]:
    """The held-out sequences that the parent knows by heart: of a very high MA, or far over the others'.

    Where the parent was fine-tuned from a base, also those whose likelihood it raised far more than the others'.

    Args:
        model: The parent.
        heldout: Held-out sequences.
        of_base: The base's mean log-likelihood a token of each; None without a base.

    Returns:
        Those that it knows.

    Raises:
        HeldoutKnown: They are more than a tenth.
    """
    ma = [accuracy(row) for row in token_matches(model, heldout)]
    limit = min(KNOWN_MA, _far_over(ma, LEAST_OVER))
    over = [value > limit for value in ma]
    if of_base is not None:
        gains = [now - before for now, before in zip(_likelihoods(model, heldout), of_base, strict=True)]
        most = _far_over(gains, LEAST_GAIN)
        over = [known or gain > most for known, gain in zip(over, gains, strict=True)]
    known = [ids for ids, is_known in zip(heldout, over, strict=True) if is_known and len(ids) > FEWEST_TOKENS]
    if len(known) > MOST_KNOWN * len(ma):
        raise HeldoutKnown(f"heldout: the model knows {len(known)} of {len(ma)} texts by heart; they must be unseen")
    return known


def _far_over(values: Sequence[float], least: float) -> float:
    """What lies far over the median of these values: by `least` at least, and by many robust deviations."""
    middle = median(values)
    return middle + max(least, DEVIATIONS * 1.4826 * median(abs(value - middle) for value in values))
