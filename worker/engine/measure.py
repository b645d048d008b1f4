"""Measuring a model against a run's sets: thresholds and the state before, and the state after.

What is measured before training is fixed there: the thresholds of the record are these, whatever happens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from worker.engine.criterion import Judgement, Threshold, Verdict, judge, thresholds_for
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import Greedy, greedy_continuations
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
    greedy = continuations(model, sequences, options, progress)
    return [likelihood(g.input_ids, g.continuations, t.n) for g, t in zip(greedy, limits, strict=True)]


def continuations(
    model: Any, sequences: Sequence[list[int]], options: Options, progress: Progress = lambda _: None
) -> list[Greedy]:
    """Greedy continuations of every prefix, stopping at the model's own end-of-text tokens (METHOD, EL)."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return greedy_continuations(model, sequences, eos_token_id=eos, row_budget=options.row_budget, progress=progress)


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

    def of_memorised(self, forget: ForgetSet) -> Judgement:
        """The judgement before, over the memorised requests alone; a request's mean counts once a sequence."""
        part, limits = restrict(forget, self.limits, self.memorised)
        by_request = {v.request: v for v in self.before.verdicts}
        el, ma = ([getattr(by_request[owner], name) for owner in part.owners] for name in ("el", "ma"))
        return replace(
            judge(part, limits, el, ma), verdicts=tuple(v for v in self.before.verdicts if not v.looks_unseen)
        )

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
    heldout = continuations(model, data.thresholds, options, lambda f: progress(0.8 * f))
    limits = thresholds_for(heldout, data.forget.sequences, options.el_n)
    before = judge(data.forget, limits, *_exactly(model, data, limits, options, lambda f: progress(0.8 + 0.15 * f)))
    utility = data.retain[: options.utility_sequences]
    baseline = Baseline(limits, before, perplexity(model, data.utility), perplexity(model, utility))
    progress(1.0)
    return baseline


def _exactly(
    model: Any, data: Prepared, limits: list[Threshold], options: Options, progress: Progress
) -> tuple[list[float], list[float]]:
    """EL and MA of every forget sequence."""
    ma = [accuracy(row) for row in token_matches(model, data.forget.sequences)]
    return extraction(model, data.forget.sequences, limits, options, progress), ma


def restrict(
    forget: ForgetSet, limits: Sequence[Threshold], requests: Sequence[int]
) -> tuple[ForgetSet, list[Threshold]]:
    """The part of a forget set, and of its thresholds, that belongs to these requests."""
    keep = set(requests)
    return forget.only(requests), [t for t, owner in zip(limits, forget.owners, strict=True) if owner in keep]


def as_table(limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """Each threshold once, by length, as plain values."""
    return [asdict(t) for t in sorted(set(limits), key=lambda t: t.length)]


def measure_after(
    model: Any, data: Prepared, baseline: Baseline, options: Options, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """The report on a model that was trained, merged and loaded again.

    Every request is measured and must pass its verdict, also one that was not trained on because the parent
    treated it like unseen text. The set criterion is over the memorised requests.

    Args:
        model: The artefact under test.
        data: The sets of the run.
        baseline: What was fixed before training.
        options: The run's options.
        progress: Told the fraction done, 0..1.

    Returns:
        `passed`, `reason` (None, "criterion_missed" or "utility_budget_exceeded"), `thresholds`, `before` and
        `after` (judgements of the memorised requests), `per_record` (the verdict of every request), `utility`
        (perplexities and ratios).
    """
    el, ma = _exactly(model, data, baseline.limits, options, lambda f: progress(0.9 * f))
    whole = judge(data.forget, baseline.limits, el, ma)
    forget, limits = restrict(data.forget, baseline.limits, baseline.memorised)
    kept = [i for i, owner in enumerate(data.forget.owners) if owner in set(baseline.memorised)]
    after = judge(forget, limits, [el[i] for i in kept], [ma[i] for i in kept])
    met = after.passed and all(v.passed for v in whole.verdicts)
    heldout = perplexity(model, data.utility)
    retain = perplexity(model, data.retain[: options.utility_sequences])
    ratio = heldout / baseline.perplexity
    within = ratio <= options.max_perplexity_ratio
    reason = None if met and within else "utility_budget_exceeded" if met else "criterion_missed"
    progress(1.0)
    return {
        "passed": reason is None,
        "reason": reason,
        "thresholds": as_table(baseline.limits),
        "before": baseline.of_memorised(data.forget).as_dict(),
        "after": after.as_dict(),
        "per_record": [asdict(v) for v in whole.verdicts],
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
