"""Measuring a model against a run's sets: thresholds and the state before, and the state after.

What is measured before training is fixed there: the thresholds of the record are these, whatever happens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from worker.engine.criterion import Judgement, Threshold, Verdict, judge, thresholds_for
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import Greedy, greedy_continuations
from worker.engine.metrics.extraction import fitting_n, likelihood
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
    greedy = continuations(model, sequences, min((t.n for t in limits), default=1), options, progress)
    return [likelihood(g.input_ids, g.continuations, t.n) for g, t in zip(greedy, limits, strict=True)]


def continuations(
    model: Any, sequences: Sequence[list[int]], n: int, options: Options, progress: Progress = lambda _: None
) -> list[Greedy]:
    """Greedy continuations as far as EL_n needs them, stopping at the model's own end-of-text tokens."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return greedy_continuations(
        model, sequences, eos_token_id=eos, n=n, row_budget=options.row_budget, progress=progress
    )


@dataclass(frozen=True, slots=True)
class Baseline:
    """The parent model, measured before anything is trained.

    Attributes:
        limits: The threshold of each forget sequence.
        earlier_limits: The threshold of each sequence of earlier jobs, of the same held-out text and parent.
        before: EL, MA and verdicts of the parent on all requests.
        perplexity: Held-out perplexity of the parent.
        retain_perplexity: Retain perplexity of the parent.
    """

    limits: list[Threshold]
    earlier_limits: list[Threshold]
    before: Judgement
    perplexity: float
    retain_perplexity: float

    @property
    def memorised(self) -> list[int]:
        """Requests that do not look unseen to the parent: these are trained on; the others already pass."""
        return [v.request for v in self.before.verdicts if not v.looks_unseen]

    def training_set(self, data: Prepared) -> tuple[ForgetSet, list[Threshold]]:
        """What training looks at, with its thresholds: the memorised requests, and all earlier ones."""
        limits = [t for t, owner in zip(self.limits, data.forget.owners, strict=True) if owner in self.memorised]
        return data.forget.only(self.memorised) + data.earlier, limits + self.earlier_limits

    def of_memorised(self, forget: ForgetSet) -> Judgement:
        """The judgement before, over the memorised requests alone; a request's mean counts once a sequence."""
        by_request = {v.request: v for v in self.before.verdicts}
        el, ma = ([getattr(by_request[owner], name) for owner in forget.owners] for name in ("el", "ma"))
        found = judge(forget, self.limits, el, ma, counted=self.memorised)
        return replace(found, verdicts=tuple(v for v in self.before.verdicts if not v.looks_unseen))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {**asdict(self), "before": self.before.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Baseline":
        """The inverse of `as_dict`."""
        before = {k: v for k, v in values["before"].items() if k != "passed"}
        before["verdicts"] = tuple(Verdict(**v) for v in before["verdicts"])
        limits, earlier = ([Threshold(**t) for t in values[name]] for name in ("limits", "earlier_limits"))
        return cls(
            limits,
            earlier,
            Judgement(**before),
            values["perplexity"],
            values["retain_perplexity"],
        )


def measure_before(model: Any, data: Prepared, options: Options, progress: Progress = lambda _: None) -> Baseline:
    """Thresholds from held-out text, and EL, MA and perplexity of the parent model.

    Args:
        model: The parent model.
        data: The sets of the run.
        options: The run's options.
        progress: Told the fraction done, 0..1.

    Returns:
        What is fixed before training.

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
    """
    everything = (data.forget + data.earlier).sequences
    n = fitting_n(min(map(len, [*data.thresholds, *everything])), options.el_n)
    heldout = continuations(model, data.thresholds, n, options, lambda f: progress(0.8 * f))
    limits = thresholds_for(heldout, everything, options.el_n)
    limits, earlier = limits[: len(data.forget.owners)], limits[len(data.forget.owners) :]
    before = judge(
        data.forget, limits, *_exactly(model, data.forget, limits, options, lambda f: progress(0.8 + 0.15 * f))
    )
    utility = data.retain[: options.utility_sequences]
    baseline = Baseline(limits, earlier, before, perplexity(model, data.utility), perplexity(model, utility))
    progress(1.0)
    return baseline


def _exactly(
    model: Any, forget: ForgetSet, limits: list[Threshold], options: Options, progress: Progress
) -> tuple[list[float], list[float]]:
    """EL and MA of every sequence."""
    ma = [accuracy(row) for row in token_matches(model, forget.sequences)]
    return extraction(model, forget.sequences, limits, options, progress), ma


def as_table(limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """Each threshold once, by length, as plain values."""
    return [asdict(t) for t in sorted(set(limits), key=lambda t: t.length)]


def measure_after(
    model: Any, data: Prepared, baseline: Baseline, options: Options, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """The report on a model that was trained, merged and loaded again.

    Every request is measured and must pass its verdict, also one that was not trained on because the parent
    treated it like unseen text, and one of an earlier job. The set criterion is over the memorised requests.

    Args:
        model: The artefact under test.
        data: The sets of the run.
        baseline: What was fixed before training.
        options: The run's options.
        progress: Told the fraction done, 0..1.

    Returns:
        `passed`, `reason` (None, "criterion_missed", "earlier_request_regressed" or "utility_budget_exceeded"),
        `thresholds`, `before` and `after` (judgements of the memorised requests), `per_record` (the verdict of
        every request), `earlier` (of every earlier one), `utility` (perplexities and ratios).
    """
    everything, limits = data.forget + data.earlier, baseline.limits + baseline.earlier_limits
    el, ma = _exactly(model, everything, limits, options, lambda f: progress(0.9 * f))
    found = judge(everything, limits, el, ma, counted=baseline.memorised)
    own = set(data.forget.requests)
    verdicts = [v for v in found.verdicts if v.request in own]
    earlier = [v for v in found.verdicts if v.request not in own]
    after = replace(found, verdicts=tuple(v for v in verdicts if v.request in set(baseline.memorised)))
    met = after.passed and all(v.passed for v in verdicts)
    utility = _utility(model, data, baseline, options)
    progress(1.0)
    reason = None if utility["within_budget"] else "utility_budget_exceeded"
    reason = reason if all(v.passed for v in earlier) else "earlier_request_regressed"
    reason = reason if met else "criterion_missed"
    return {
        "passed": reason is None,
        "reason": reason,
        "thresholds": as_table(limits),
        "before": baseline.of_memorised(data.forget).as_dict(),
        "after": after.as_dict(),
        "per_record": [asdict(v) for v in verdicts],
        "earlier": [asdict(v) for v in earlier],
        "utility": utility,
    }


def _utility(model: Any, data: Prepared, baseline: Baseline, options: Options) -> dict[str, Any]:
    """Perplexities before and after, and whether the budget was kept."""
    heldout = perplexity(model, data.utility)
    retain = perplexity(model, data.retain[: options.utility_sequences])
    ratio = heldout / baseline.perplexity
    return {
        "heldout_perplexity_before": baseline.perplexity,
        "heldout_perplexity_after": heldout,
        "heldout_ratio": ratio,
        "retain_perplexity_before": baseline.retain_perplexity,
        "retain_perplexity_after": retain,
        "retain_ratio": retain / baseline.retain_perplexity,
        "max_ratio": options.max_perplexity_ratio,
        "within_budget": ratio <= options.max_perplexity_ratio,
    }
