"""Measuring a model against a run's sets: thresholds and the state before, and the state after.

What is measured before training is fixed there: the thresholds of the record are these, whatever happens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.engine.criterion import Judgement, Threshold, Verdict, judge, thresholds_for
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.metrics.extraction import likelihood
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared

Progress = Callable[[float], None]


def extraction(
    model: Any,
    sequences: Sequence[list[int]],
    limits: Sequence[Threshold],
    options: Options,
    progress: Progress = lambda _: None,
) -> list[float]:
    """EL of each sequence with the n of its threshold."""
    greedy = greedy_continuations(model, sequences, row_budget=options.row_budget, progress=progress)
    return [likelihood(g.input_ids, g.continuations, t.n) for g, t in zip(greedy, limits, strict=True)]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The parent model, measured before anything is trained.

    Attributes:
        limits: The threshold of each forget sequence.
        before: EL, MA and verdicts of the parent on all requests.
        perplexity: Held-out perplexity of the parent.
        retain_perplexity: Retain perplexity of the parent.
    """

    limits: list[Threshold]
    before: Judgement
    perplexity: float
    retain_perplexity: float

    @property
    def memorised(self) -> list[int]:
        """Requests that do not look unseen to the parent: these are trained on; the others already pass."""
        return [v.request for v in self.before.verdicts if not v.looks_unseen]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {**asdict(self), "limits": [asdict(t) for t in self.limits], "before": self.before.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Baseline":
        """The inverse of `as_dict`."""
        before = {k: v for k, v in values["before"].items() if k != "passed"}
        before["verdicts"] = tuple(Verdict(**v) for v in before["verdicts"])
        return cls(
            [Threshold(**t) for t in values["limits"]],
            Judgement(**before),
            values["perplexity"],
            values["retain_perplexity"],
        )


def measure_before(model: Any, data: Prepared, options: Options, progress: Progress = lambda _: None) -> Baseline:
    """Thresholds from held-out text, and EL, MA and perplexity of the parent model.

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
    """
    heldout = greedy_continuations(
        model, data.thresholds, row_budget=options.row_budget, progress=lambda f: progress(0.8 * f)
    )
    limits = thresholds_for(heldout, data.forget.sequences, options.el_n)
    before = _judge_exactly(model, data, limits, options, lambda f: progress(0.8 + 0.15 * f))
    utility = data.retain[: options.utility_sequences]
    baseline = Baseline(limits, before, perplexity(model, data.utility), perplexity(model, utility))
    progress(1.0)
    return baseline


def _judge_exactly(
    model: Any, data: Prepared, limits: list[Threshold], options: Options, progress: Progress
) -> Judgement:
    ma = [accuracy(row) for row in token_matches(model, data.forget.sequences)]
    return judge(data.forget, limits, extraction(model, data.forget.sequences, limits, options, progress), ma)


def as_table(limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """Each threshold once, by length, as plain values."""
    return [asdict(t) for t in sorted(set(limits), key=lambda t: t.length)]


def measure_after(
    model: Any, data: Prepared, baseline: Baseline, options: Options, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """The report on a model that was trained, merged and loaded again.

    Args:
        model: The artefact under test.
        data: The sets of the run; the forget set may hold the trained requests alone.
        baseline: What was fixed before training, for the same forget set.
        options: The run's options.
        progress: Told the fraction done, 0..1.

    Returns:
        `passed`, `reason` (None, "criterion_missed" or "utility_budget_exceeded"), `thresholds`, `before`,
        `after` (judgements), `utility` (perplexities and ratios), `per_record` (verdicts).
    """
    after = _judge_exactly(model, data, baseline.limits, options, lambda f: progress(0.9 * f))
    heldout = perplexity(model, data.utility)
    retain = perplexity(model, data.retain[: options.utility_sequences])
    ratio = heldout / baseline.perplexity
    within = ratio <= options.max_perplexity_ratio
    reason = None if after.passed and within else "utility_budget_exceeded" if after.passed else "criterion_missed"
    progress(1.0)
    return {
        "passed": reason is None,
        "reason": reason,
        "thresholds": as_table(baseline.limits),
        "before": baseline.before.as_dict(),
        "after": after.as_dict(),
        "utility": {
            "heldout_perplexity_before": baseline.perplexity,
            "heldout_perplexity_after": heldout,
            "heldout_ratio": ratio,
            "retain_perplexity_before": baseline.retain_perplexity,
            "retain_perplexity_after": retain,
            "retain_ratio": retain / baseline.retain_perplexity,
            "max_ratio": options.max_perplexity_ratio,
            "within_budget": within,
        },
    }
