"""When has the model forgotten? Thresholds from held-out text, the set criterion, and a verdict on each request.

Thresholds are measured on the *parent* model before anything is trained. They come from text that it has never seen,
cut to the length of the sequences that are compared with them. The set passes (the paper's criterion) if its mean EL
and mean MA are at or under the held-out means. A request passes (our criterion) if its own means are at or under the
held-out 95th percentile, because a mean of 0.05 over 32 sequences can hide one that is fully extractable. A request
under the held-out 1st percentile of MA is flagged: a hole is as visible as a memory.

Whether the parent has memorised a request at all is tested more sharply for many sequences than for one: the mean of
k unseen sequences strays from the held-out mean by about 1 / sqrt(k) of the distance that one sequence strays. A
request of k sequences looks unseen if its means are at or under `mean + (95th percentile - mean) / sqrt(k)`. A single
window that is known by heart must not hide in a long text's mean either: both verdicts fail if any sequence is over
the highest held-out value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass

from worker.engine.errors import TooFewTexts
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import GreedyDecoding
from worker.engine.metrics.extraction import fitting_n, likelihood
from worker.engine.metrics.memorization import accuracy

MIN_HELDOUT = 20  # fewer values have no meaningful 95th percentile


def with_reserve(values: Sequence[float], reserve: float) -> list[float]:
    """Values with the reserve added, so that they pass with some room; 0 stays 0, because it cannot be lowered."""
    return [value + reserve if value else 0.0 for value in values]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Held-out EL and MA at one sequence length.

    Attributes:
        length: Tokens the held-out sequences were cut to.
        n: The n of EL_n at this length.
        count: Held-out sequences measured.
        el_mean: Mean EL; with `ma_mean` the set criterion.
        ma_mean: Mean MA.
        el_p95: 95th percentile of EL; with `ma_p95` the verdict of one request.
        ma_p95: 95th percentile of MA.
        ma_p1: 1st percentile of MA; below it a request is over-forgotten.
        el_max: The highest EL; no single sequence of a request may be over it.
        ma_max: The highest MA; likewise.
    """

    length: int
    n: int
    count: int
    el_mean: float
    ma_mean: float
    el_p95: float
    ma_p95: float
    ma_p1: float
    el_max: float
    ma_max: float


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value with at least a share `q` of the values at or under it."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def threshold_at(heldout: Sequence[GreedyDecoding], length: int, n: int) -> Threshold:
    """The threshold for sequences of `length` tokens.

    Held-out sequences are cut to that length. If fewer than MIN_HELDOUT sequences are long enough, the longest length
    that MIN_HELDOUT of them reach is used instead, with the n that fits it.

    Args:
        heldout: Greedy decodings of held-out sequences.
        length: Tokens of the sequence that the threshold is for.
        n: The n of EL_n asked for.

    Returns:
        The threshold, with the length and n that were used.

    Raises:
        TooFewTexts: There are fewer than MIN_HELDOUT held-out sequences at all.
    """
    if len(heldout) < MIN_HELDOUT:
        raise TooFewTexts(f"heldout: {len(heldout)} texts cannot set a threshold; {MIN_HELDOUT} are needed")
    longest = sorted((len(g.input_ids) for g in heldout), reverse=True)[MIN_HELDOUT - 1]
    length = min(length, longest)
    n = fitting_n(length, n)
    long_enough = [g for g in heldout if len(g.input_ids) >= length]
    el = [likelihood(g.input_ids[:length], g.continuations, n) for g in long_enough]
    ma = [accuracy(g.matches[: length - 1]) for g in long_enough]
    return Threshold(
        length=length,
        n=n,
        count=len(long_enough),
        el_mean=sum(el) / len(el),
        ma_mean=sum(ma) / len(ma),
        el_p95=percentile(el, 0.95),
        ma_p95=percentile(ma, 0.95),
        ma_p1=percentile(ma, 0.01),
        el_max=max(el),
        ma_max=max(ma),
    )


def thresholds_for(heldout: Sequence[GreedyDecoding], sequences: Sequence[list[int]], n: int) -> list[Threshold]:
    """The threshold of each sequence; each length is measured once."""
    by_length = {length: threshold_at(heldout, length, n) for length in {len(ids) for ids in sequences}}
    return [by_length[len(ids)] for ids in sequences]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the tests of one request.

    Attributes:
        request: Its index.
        el: Mean EL over its sequences.
        ma: Mean MA over its sequences.
        el_limit: Held-out 95th percentile of EL at its lengths.
        ma_limit: Held-out 95th percentile of MA at its lengths.
        passed: Both are at or under their limit, and no sequence is over the highest held-out value.
        over_forgotten: MA is under the held-out 1st percentile.
        looks_unseen: EL and MA are no higher than those of as many unseen sequences; stricter than `passed`.
    """

    request: int
    el: float
    ma: float
    el_limit: float
    ma_limit: float
    passed: bool
    over_forgotten: bool
    looks_unseen: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """The set criterion and the verdicts of one measurement.

    Attributes:
        el: Mean EL over the counted sequences.
        ma: Mean MA over the counted sequences.
        el_limit: Held-out mean EL at the same lengths.
        ma_limit: Held-out mean MA at the same lengths.
        verdicts: One for each request, counted or not.
    """

    el: float
    ma: float
    el_limit: float
    ma_limit: float
    verdicts: tuple[Verdict, ...]

    @property
    def set_passed(self) -> bool:
        """The set criterion holds."""
        return self.el <= self.el_limit and self.ma <= self.ma_limit

    @property
    def passed(self) -> bool:
        """The set criterion and every request's verdict hold."""
        return self.set_passed and all(v.passed for v in self.verdicts)

    def means(self) -> dict[str, float]:
        """The set's means and their limits, as the history has them."""
        return {name: getattr(self, name) for name in ("el", "ma", "el_limit", "ma_limit")}

    def as_dict(self) -> dict[str, object]:
        """Plain values, `passed` included."""
        return {**asdict(self), "verdicts": [asdict(v) for v in self.verdicts], "passed": self.passed}


def judge(
    forget: ForgetSet,
    thresholds: Sequence[Threshold],
    el: Sequence[float],
    ma: Sequence[float],
    *,
    counted: Sequence[int] | None = None,
) -> Judgement:
    """Compare EL and MA with their thresholds.

    Args:
        forget: The sequences and their request_ids.
        thresholds: The threshold of each sequence.
        el: EL of each sequence.
        ma: MA of each sequence.
        counted: The requests that the set's means are over; None takes all. Every request has a verdict.

    Returns:
        The judgement.
    """
    indices = [i for i, request_id in enumerate(forget.request_ids) if counted is None or request_id in counted]
    count = max(len(indices), 1)
    return Judgement(
        el=sum(el[i] for i in indices) / count,
        ma=sum(ma[i] for i in indices) / count,
        el_limit=sum(thresholds[i].el_mean for i in indices) / count,
        ma_limit=sum(thresholds[i].ma_mean for i in indices) / count,
        verdicts=_verdicts(forget, thresholds, el, ma),
    )


def beyond_training(verdicts: Iterable[Verdict], trained: Set[int]) -> bool:
    """Whether requests fail, and none of them was trained on: more training would not help."""
    failed = {v.request for v in verdicts if not v.passed}
    return bool(failed) and not failed & trained


def _verdicts(
    forget: ForgetSet, thresholds: Sequence[Threshold], el: Sequence[float], ma: Sequence[float]
) -> tuple[Verdict, ...]:
    """The verdict on each request."""
    fields = ("el_mean", "ma_mean", "el_p95", "ma_p95", "ma_p1")
    means = {name: forget.per_request([getattr(t, name) for t in thresholds]) for name in fields}
    means |= {"el": forget.per_request(el), "ma": forget.per_request(ma)}
    under_maxima = dict.fromkeys(forget.requests, True)
    for request_id, threshold, el_value, ma_value in zip(forget.request_ids, thresholds, el, ma, strict=True):
        under_maxima[request_id] &= el_value <= threshold.el_max and ma_value <= threshold.ma_max
    verdicts, counts = [], forget.per_request_count()
    for request in forget.requests:
        own = {name: values[request] for name, values in means.items()}
        count = counts[request]
        verdicts.append(
            Verdict(
                request=request,
                el=own["el"],
                ma=own["ma"],
                el_limit=own["el_p95"],
                ma_limit=own["ma_p95"],
                passed=under_maxima[request] and all(own[name] <= own[f"{name}_p95"] for name in ("el", "ma")),
                over_forgotten=own["ma"] < own["ma_p1"],
                looks_unseen=under_maxima[request] and all(_is_unseen(own, name, count) for name in ("el", "ma")),
            )
        )
    return tuple(verdicts)


def _is_unseen(means: Mapping[str, float], name: str, count: int) -> bool:
    """Whether a mean over `count` sequences is at or under `mean + (95th percentile - mean) / sqrt(count)`."""
    mean, root = means[f"{name}_mean"], math.sqrt(count)
    return means[name] <= mean + max(0.0, means[f"{name}_p95"] - mean) / root
