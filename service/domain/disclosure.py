"""Which numbers may be shown to whom: one rule, an allow-list.

Whoever holds the weights can test guesses against an exact mean over few people's texts. A submitter who knows the
numbers of its own requests can subtract them from a mean. So a number about submitted texts is shown only if the texts
come from at least `FEWEST_SUBMITTERS` distinct submitters (API keys). Everything that is not on the list counts as
being about submitted texts.
"""

from collections.abc import Mapping
from typing import TypeVar

FEWEST_SUBMITTERS = 3
SUPPRESSED = "suppressed"  # what a certificate and a model card say instead of such a number
PUBLIC = frozenset({  # numbers about held-out or retain text, about the run, and counts
    "limits", "el_limit", "ma_limit", "heldout_perplexity", "perplexity", "utility", "retain_loss", "memorised",
    "submitters", "requests", "retain_excluded", "heldout_excluded", "earlier", "epochs", "epoch", "met", "seconds",
    "stage", "progress", "outcome", "reason", "attempts", "steps",
    "version", "fence", "thresholds", "over_forgotten", "files", "artefact", "environment",
})  # fmt: skip
NESTED = frozenset({"findings", "trajectory"})  # their parts are judged one by one
Value = TypeVar("Value")


def is_disclosed(submitters: int | None) -> bool:
    """Whether means over the texts of so many distinct submitters may be shown; None: not known, so they may not."""
    return submitters is not None and submitters >= FEWEST_SUBMITTERS


def disclosed(numbers: Mapping[str, object], submitters: int | None, *, auditor: bool = False) -> dict[str, object]:
    """The numbers that may be shown; the others are None. An auditor sees all of them."""
    return dict(numbers) if auditor or is_disclosed(submitters) else redacted(numbers)


def redacted(numbers: Mapping[str, object]) -> dict[str, object]:
    """The public numbers; the others are None."""
    return {name: _redacted(name, value) for name, value in numbers.items()}


def _redacted(name: str, value: object) -> object:
    if name not in NESTED:
        return value if name in PUBLIC else None
    if isinstance(value, list | tuple):
        return [redacted(part) for part in value if isinstance(part, Mapping)]
    return redacted(value) if isinstance(value, Mapping) else None


def suppressed(means: Mapping[str, Value], submitters: int | None) -> dict[str, Value | str]:
    """Means over submitted texts as a certificate may have them: as they are, or `SUPPRESSED` each."""
    return dict(means) if is_disclosed(submitters) else dict.fromkeys(means, SUPPRESSED)
