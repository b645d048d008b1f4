"""Is held-out text unseen? Text that the parent knows by heart sets limits that a memorised request would meet.

A few known texts are borne: they are left out of thresholds and of what attacks compare with. Licences and well-known
quotations stand in any large corpus. More than a few are refused.
"""

from collections.abc import Sequence
from statistics import median

from worker.engine.errors import HeldoutKnown
from worker.engine.metrics.memorization import accuracy, token_matches
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
