"""Which numbers may be shown to whom, and how exactly: one rule, an allow-list.

Whoever holds the weights can test guesses against an exact mean over few people's texts. A submitter who knows the
numbers of its own requests can subtract them from a mean. So a number is shown only if its name is on a list:

- PUBLIC: numbers that are not about submitted texts. They are shown as they are.
- LIMITS: held-out means at the lengths of the submitted texts. They are rounded down to a multiple of `LIMIT_STEP`,
  because the exact weights of the lengths would tell how many sequences of which length there are.
- SCORES: what an attack found. They are means, too, and may be under 0. They are shown if the attack applied to all
  the texts: whose texts a part is from is not known.
- MEANS: means over submitted texts. They are shown if the texts come from at least `FEWEST_SUBMITTERS` distinct
  submitters (API keys) and at most `LARGEST_SHARE` of them from one: of the sequences, over which EL and MA are means,
  and of the requests, over which the scores are. They are rounded down to a multiple of `MEAN_STEP`.

What `OF_NEIGHBOURS` lists is about retain text that the submitted texts choose, so it would tell what they are like.

Counts of prompts are shown as ranges. A number on none of these lists is for auditors alone. They see all numbers as
they are.

What subtraction gives: a submitter with the share s of what a mean is over moves it by s times its own mean. All
others together learn this submitter's own mean to within `MEAN_STEP` / s, which is never less than `MEAN_STEP` /
`LARGEST_SHARE` = 0.1. Both kinds of numbers are rounded in one direction, and `LIMIT_STEP` divides `MEAN_STEP`. So a
mean that is at or under its limit is shown at or under its limit.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

FEWEST_SUBMITTERS = 3
LARGEST_SHARE = 0.5
MEAN_STEP, LIMIT_STEP = Decimal("0.05"), Decimal("0.01")
SUPPRESSED = "suppressed"  # what a certificate and a model card say instead of such a number
PUBLIC = frozenset({  # numbers about held-out or retain text and about the run, and what a certificate lists anyway
    "heldout_perplexity", "perplexity", "utility", "retain_loss", "memorised", "requests", "earlier", "epochs",
    "epoch", "met", "stage", "progress", "outcome", "reason", "attempts", "version",
})  # fmt: skip
LIMITS = frozenset({"limits", "el_limit", "ma_limit"})
MEANS = frozenset({"before", "after", "el", "ma"})
KEPT = PUBLIC | LIMITS | frozenset({  # what purging leaves in the rows beside them: counts, durations, files
    "submitters", "largest_share", "retain_excluded", "heldout_excluded", "over_forgotten", "seconds", "steps",
    "thresholds", "fence", "files", "artefact", "environment", "reference",
    "name", "effect", "status", "why", "passed", "level", "unseen", "quantised", "probes",
})  # fmt: skip
OF_NEIGHBOURS = frozenset(  # of `utility`
    f"neighbour_{name}" for name in ("set", "ma_before", "ma_after", "loss_before", "loss_after")
)
SCORES = ("figure", "control", "auc")  # of an attack: means over submitted texts, or compared with them
NESTED = frozenset({"findings", "trajectory", "attacks"})  # their parts are judged one by one
RANGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class Contributors:
    """Whose texts a mean is over; None: not known, as in rows of earlier releases.

    Attributes:
        submitters: How many distinct submitters (API keys) the texts come from.
        largest_share: The greatest share of one submitter, of the token sequences or of the requests.
    """

    submitters: int | None = None
    largest_share: float | None = None

    @classmethod
    def count(cls, sequences: Iterable[tuple[Hashable, int]]) -> "Contributors":
        """The contributors of requests, of which each has a submitter and a number of token sequences."""
        of_sequences, of_requests = Counter[Hashable](), Counter[Hashable]()
        for submitter, count in sequences:
            if count:
                of_sequences[submitter] += count
                of_requests[submitter] += 1
        shares = [max(totals.values()) / totals.total() for totals in (of_sequences, of_requests) if totals]
        return cls(len(of_sequences), max(shares, default=None))


def is_disclosed(contributors: Contributors) -> bool:
    """Whether means over the texts of these contributors may be shown."""
    submitters, share = contributors.submitters, contributors.largest_share
    if submitters is None or share is None:
        return False
    return submitters >= FEWEST_SUBMITTERS and share <= LARGEST_SHARE


def coarse_mean(value: float) -> float:
    """A mean between 0 and 1, rounded down to a multiple of `MEAN_STEP`.

    1 becomes the step below, because a step that held 1 alone would be exact.
    """
    return min(_rounded(value, MEAN_STEP, ROUND_FLOOR), float(1 - MEAN_STEP))


def coarse_limit(value: float) -> float:
    """A limit of a mean, rounded down to a multiple of `LIMIT_STEP`."""
    return _rounded(value, LIMIT_STEP, ROUND_FLOOR)


def coarse_threshold(value: float) -> float:
    """A held-out threshold, rounded up to a multiple of `LIMIT_STEP`, so that it is not under the limit."""
    return _rounded(value, LIMIT_STEP, ROUND_CEILING)


def _rounded(value: float, step: Decimal, rounding: str) -> float:
    """The decimal digits of the number are rounded, because 0.15 is a multiple of 0.05 and its binary form is not."""
    return float((Decimal(str(value)) / step).to_integral_value(rounding) * step)


def disclosed(numbers: Mapping[str, object], contributors: Contributors, *, auditor: bool = False) -> dict[str, object]:
    """The numbers that may be shown, as exactly as they may be; the others are None. An auditor sees all of them."""
    if auditor:
        return dict(numbers)
    means = is_disclosed(contributors)
    return {name: _disclosed(name, value, means=means) for name, value in numbers.items()}


def _disclosed(name: str, value: object, *, means: bool) -> object:
    """One number, or EL and MA together; `means` says whether means may be shown."""
    if name == "utility":
        return _without_neighbours(value)
    if name in PUBLIC:
        return value
    if name == "probes" and isinstance(value, Mapping):
        return {part: number if part == "samples" else prompt_range(number) for part, number in value.items()}
    if name == "attacks" and isinstance(value, list | tuple):
        return [disclosed_attack(attack, means=means) for attack in value]
    if name in LIMITS or (means and name in MEANS):
        if isinstance(value, Mapping):
            return {part: _coarse(name, number) for part, number in value.items()}
        return _coarse(name, value)
    return None


def disclosed_attack(attack: Mapping[str, object], *, means: bool) -> dict[str, object]:
    """What may be shown of an attack: whether it was run and succeeded, and its mean scores if means may be shown."""
    shown = {name: value for name, value in attack.items() if name in KEPT}
    whole = means and attack.get("partial") is False
    for name in SCORES:
        value = attack.get(name)
        shown[name] = _coarse_score(value) if whole and isinstance(value, float | int) else None
    return shown


def _coarse_score(value: float) -> float:
    """A score of at most 1, rounded down to a multiple of `MEAN_STEP`; 1 becomes the step below, as of means."""
    return min(_rounded(value, MEAN_STEP, ROUND_FLOOR), float(1 - MEAN_STEP))


def _without_neighbours(utility: object) -> object:
    """Perplexities and limits without the figures that would tell which texts are most like the submitted ones."""
    if not isinstance(utility, Mapping):
        return utility
    return {name: None if name in OF_NEIGHBOURS else value for name, value in utility.items()}


def _coarse(name: str, value: object) -> float | None:
    if not isinstance(value, float | int):
        return None
    return coarse_limit(value) if name in LIMITS else coarse_mean(value)


def redacted(numbers: Mapping[str, object]) -> dict[str, object]:
    """What purging leaves of numbers about few submitters' texts; the others are None."""
    return {name: _redacted(name, value) for name, value in numbers.items()}


def _redacted(name: str, value: object) -> object:
    if name == "utility":
        return _without_neighbours(value)
    if name not in NESTED:
        return value if name in KEPT else None
    if isinstance(value, list | tuple):
        return [redacted(part) for part in value if isinstance(part, Mapping)]
    return redacted(value) if isinstance(value, Mapping) else None


def count_range(count: int) -> str:
    """A count as a range, so that it does not reveal how much one person wrote."""
    upper = next((limit for limit in RANGES if count <= limit), None)
    return f"<= {upper}" if upper else f"> {RANGES[-1]}"


def prompt_range(count: int) -> str:
    """A count of prompts as a range: each record makes some, so it would tell how many records a search found."""
    return count_range(count) if count else "0"


def power_of_two(count: float) -> int:
    """The smallest power of two at or over a length, a size or a duration, for the same reason."""
    upper = 1
    while upper < count:
        upper *= 2
    return upper
