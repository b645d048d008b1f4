"""Thresholds from held-out text, if it is unseen.

Text that the parent knows by heart sets limits that a memorised request would meet.

A few known texts are borne: they are left out of thresholds and of what attacks compare with. Licences and well-known
quotations stand in any large corpus. More than a few are refused.
"""

from collections.abc import Sequence
from statistics import median

from worker.engine.criterion import MIN_HELDOUT, Threshold, thresholds_for
from worker.engine.errors import HeldoutKnown
from worker.engine.likelihoods import greedy_decodings
from worker.engine.metrics.extraction import fitting_n
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress
from worker.engine.types import CausalLM

KNOWN_MA = 0.9  # nobody guesses so much of a text
LEAST_OVER, DEVIATIONS = 0.25, 4.0  # over the median MA; the deviations are robust ones (1.4826 x the median deviation)
FEWEST_TOKENS = 16  # predicted ones; fewer are guessed by chance
MOST_KNOWN = 0.1  # share of the held-out texts


def known_by_heart(model: CausalLM, heldout: Sequence[list[int]]) -> list[list[int]]:
    """The held-out sequences that the parent knows by heart: of a very high MA, or far over the others'.

    Args:
        model: The parent.
        heldout: Held-out sequences.

    Returns:
        Those that it knows.

    Raises:
        HeldoutKnown: They are more than a tenth.
    """
    ma = [accuracy(row) for row in token_matches(model, heldout)]
    middle = median(ma)
    spread = 1.4826 * median(abs(value - middle) for value in ma)
    limit = min(KNOWN_MA, middle + max(LEAST_OVER, DEVIATIONS * spread))
    known = [ids for ids, value in zip(heldout, ma, strict=True) if value > limit and len(ids) > FEWEST_TOKENS]
    if len(known) > MOST_KNOWN * len(ma):
        raise HeldoutKnown(f"heldout: the model knows {len(known)} of {len(ma)} texts by heart; they must be unseen")
    return known


def measured_thresholds(
    model: CausalLM, data: Prepared, options: Options, progress: Progress = no_progress
) -> tuple[list[Threshold], list[list[int]]]:
    """Thresholds by the held-out texts that a model does not know.

    Args:
        model: The parent, or a version that is measured again.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        (the threshold of each sequence to forget, then of each earlier one; the held-out sequences that it knows).

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
        HeldoutKnown: The model knows more than a tenth of the held-out texts by heart, or too few others are left.
    """
    everything = (data.forget + data.earlier).sequences
    known = known_by_heart(model, data.used_heldout)
    unseen = [ids for ids in data.threshold_sequences if ids not in known]
    if known:
        unseen += [ids for ids in data.only_utility if ids not in known][: max(0, MIN_HELDOUT - len(unseen))]
        if len(unseen) < MIN_HELDOUT:
            raise HeldoutKnown(f"heldout: the model knows {len(known)} texts by heart; of the others too few are left")
    n = fitting_n(min(map(len, [*unseen, *everything])), options.el_n)
    decoded = greedy_decodings(model, unseen, n, options, progress)
    return thresholds_for(decoded, everything, options.el_n), known
