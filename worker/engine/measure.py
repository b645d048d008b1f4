"""Measures a model on a run's sets: thresholds and the state before training, and the state after.

The measurements before training are final: the certificate has these thresholds, whatever happens later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from worker.engine.criterion import Judgement, Threshold, Verdict, judge, thresholds_for
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import GreedyDecoding, greedy_continuations
from worker.engine.metrics.extraction import fitting_n, likelihood
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM


def extraction_likelihoods(
    model: CausalLM,
    sequences: Sequence[list[int]],
    thresholds: Sequence[Threshold],
    options: Options,
    progress: Progress = no_progress,
) -> list[float]:
    """EL of each sequence with the n of its threshold."""
    smallest_n = min((t.n for t in thresholds), default=1)
    greedy = greedy_decodings(model, sequences, smallest_n, options, progress)
    return [likelihood(g.input_ids, g.continuations, t.n) for g, t in zip(greedy, thresholds, strict=True)]


def greedy_decodings(
    model: CausalLM, sequences: Sequence[list[int]], n: int, options: Options, progress: Progress = no_progress
) -> list[GreedyDecoding]:
    """Greedy continuations as far as EL_n needs them; generation stops at the model's own end-of-text tokens."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return greedy_continuations(
        model, sequences, eos_token_id=eos, n=n, row_budget=options.row_budget, progress=progress
    )


@dataclass(frozen=True, slots=True)
class Baseline:
    """The parent model, measured before anything is trained.

    Attributes:
        thresholds: The threshold of each forget sequence.
        earlier_thresholds: The threshold of each sequence of earlier jobs, from the same held-out text and parent.
        before: EL, MA and verdicts of the parent on all requests.
        perplexity: Held-out perplexity of the parent.
        retain_perplexity: Retain perplexity of the parent.
        first_perplexity: Held-out perplexity of the first version, on the same sequences.
    """

    thresholds: list[Threshold]
    earlier_thresholds: list[Threshold]
    before: Judgement
    perplexity: float
    retain_perplexity: float
    first_perplexity: float

    @property
    def memorised(self) -> list[int]:
        """The requests that training works on: they do not look unseen to the parent; the others already pass."""
        return [v.request for v in self.before.verdicts if not v.looks_unseen]

    def training_set(self, data: Prepared) -> tuple[ForgetSet, list[Threshold]]:
        """The sequences that training looks at, with their thresholds: memorised requests and all earlier ones."""
        thresholds = [
            t
            for t, request_id in zip(self.thresholds, data.forget.request_ids, strict=True)
            if request_id in self.memorised
        ]
        return data.forget.only(self.memorised) + data.earlier, thresholds + self.earlier_thresholds

    def judge_memorised(self, forget: ForgetSet) -> Judgement:
        """The judgement before, over the memorised requests alone; each sequence counts with its request's mean."""
        by_request = {v.request: v for v in self.before.verdicts}
        el, ma = ([getattr(by_request[request_id], name) for request_id in forget.request_ids] for name in ("el", "ma"))
        judgement = judge(forget, self.thresholds, el, ma, counted=self.memorised)
        return replace(judgement, verdicts=tuple(v for v in self.before.verdicts if not v.looks_unseen))

    def as_dict(self) -> dict[str, object]:
        """Plain values, for a file."""
        return {**asdict(self), "before": self.before.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Baseline":
        """The inverse of `as_dict`."""
        before = {k: v for k, v in values["before"].items() if k != "passed"}
        before["verdicts"] = tuple(Verdict(**v) for v in before["verdicts"])
        thresholds, earlier = ([Threshold(**t) for t in values[name]] for name in ("thresholds", "earlier_thresholds"))
        perplexities = [values[name] for name in ("perplexity", "retain_perplexity", "first_perplexity")]
        return cls(thresholds, earlier, Judgement(**before), *perplexities)


def measure_before(
    model: CausalLM,
    data: Prepared,
    options: Options,
    progress: Progress = no_progress,
    *,
    first_perplexity: float | None = None,
) -> Baseline:
    """Thresholds from held-out text, and EL, MA and perplexity of the parent model.

    Args:
        model: The parent model.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.
        first_perplexity: Perplexity of the first version on `data.utility`; None if the parent is the first version.

    Returns:
        The measurements that are fixed before training.

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
    """
    everything = (data.forget + data.earlier).sequences
    n = fitting_n(min(map(len, [*data.threshold_sequences, *everything])), options.el_n)
    heldout = greedy_decodings(model, data.threshold_sequences, n, options, partial_progress(progress, 0.0, 0.8))
    thresholds = thresholds_for(heldout, everything, options.el_n)
    thresholds, earlier = thresholds[: len(data.forget.request_ids)], thresholds[len(data.forget.request_ids) :]
    el, ma = _el_and_ma(model, data.forget, thresholds, options, partial_progress(progress, 0.8, 0.15))
    before = judge(data.forget, thresholds, el, ma)
    retain = perplexity(model, data.retain[: options.utility_sequences])
    own = perplexity(model, data.utility)
    progress(1.0)
    return Baseline(
        thresholds, earlier, before, own, retain, first_perplexity=own if first_perplexity is None else first_perplexity
    )


def _el_and_ma(
    model: CausalLM, forget: ForgetSet, thresholds: list[Threshold], options: Options, progress: Progress
) -> tuple[list[float], list[float]]:
    """EL and MA of every sequence, computed in full."""
    ma = [accuracy(row) for row in token_matches(model, forget.sequences)]
    return extraction_likelihoods(model, forget.sequences, thresholds, options, progress), ma


def distinct_thresholds(thresholds: Sequence[Threshold]) -> list[Threshold]:
    """Each threshold once, by length."""
    return sorted(set(thresholds), key=lambda threshold: threshold.length)


@dataclass(frozen=True, slots=True)
class Utility:
    """Perplexities of the parent, the artefact and the first version, and whether the budgets were kept.

    A run that stays within the budget of one run may still be over the budget of all runs together: losses compound.
    """

    heldout_perplexity_before: float
    heldout_perplexity_after: float
    heldout_ratio: float
    retain_perplexity_before: float
    retain_perplexity_after: float
    retain_ratio: float
    max_ratio: float
    within_budget: bool
    first_heldout_perplexity: float
    total_ratio: float
    max_total_ratio: float
    within_total_budget: bool


@dataclass(frozen=True, slots=True)
class ArtefactReport:
    """The results of the tests of a model that was trained, merged and loaded again.

    Attributes:
        reason: None, "criterion_missed", "earlier_request_regressed", "utility_budget_exceeded" or
            "total_utility_budget_exceeded".
        thresholds: Each threshold once, by length.
        before: The judgement of the memorised requests on the parent.
        after: The same on the artefact.
        per_record: The verdict of every request.
        earlier: The verdict of every request of an earlier job.
        utility: Perplexities and ratios.
    """

    reason: str | None
    thresholds: list[Threshold]
    before: Judgement
    after: Judgement
    per_record: list[Verdict]
    earlier: list[Verdict]
    utility: Utility

    @property
    def passed(self) -> bool:
        """Every test holds."""
        return self.reason is None

    def as_dict(self) -> dict[str, object]:
        """Plain values, `passed` included."""
        judgements = {"before": self.before.as_dict(), "after": self.after.as_dict()}
        return {**asdict(self), **judgements, "passed": self.passed}


def measure_after(
    model: CausalLM, data: Prepared, baseline: Baseline, options: Options, progress: Progress = no_progress
) -> ArtefactReport:
    """Test a model that was trained, merged and loaded again.

    Every request is measured and must pass its verdict, also a request that was not trained on because it looked
    unseen to the parent, and a request of an earlier job. The set criterion is over the memorised requests.

    Args:
        model: The artefact under test.
        data: The sets of the run.
        baseline: The measurements that were fixed before training.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        The results of the tests.
    """
    everything, thresholds = data.forget + data.earlier, baseline.thresholds + baseline.earlier_thresholds
    el, ma = _el_and_ma(model, everything, thresholds, options, partial_progress(progress, 0.0, 0.9))
    judgement = judge(everything, thresholds, el, ma, counted=baseline.memorised)
    own = set(data.forget.requests)
    verdicts = [v for v in judgement.verdicts if v.request in own]
    earlier = [v for v in judgement.verdicts if v.request not in own]
    after = replace(judgement, verdicts=tuple(v for v in verdicts if v.request in set(baseline.memorised)))
    utility = _utility(model, data, baseline, options)
    progress(1.0)
    reason = None if utility.within_total_budget else "total_utility_budget_exceeded"
    reason = reason if utility.within_budget else "utility_budget_exceeded"
    reason = reason if all(v.passed for v in earlier) else "earlier_request_regressed"
    reason = reason if after.passed and all(v.passed for v in verdicts) else "criterion_missed"
    return ArtefactReport(
        reason,
        distinct_thresholds(thresholds),
        baseline.judge_memorised(data.forget),
        after,
        verdicts,
        earlier,
        utility,
    )


def _utility(model: CausalLM, data: Prepared, baseline: Baseline, options: Options) -> Utility:
    """Perplexities before and after, and whether the budgets were kept."""
    heldout = perplexity(model, data.utility)
    retain = perplexity(model, data.retain[: options.utility_sequences])
    ratio, total = heldout / baseline.perplexity, heldout / baseline.first_perplexity
    return Utility(
        heldout_perplexity_before=baseline.perplexity,
        heldout_perplexity_after=heldout,
        heldout_ratio=ratio,
        retain_perplexity_before=baseline.retain_perplexity,
        retain_perplexity_after=retain,
        retain_ratio=retain / baseline.retain_perplexity,
        max_ratio=options.max_perplexity_ratio,
        within_budget=ratio <= options.max_perplexity_ratio,
        first_heldout_perplexity=baseline.first_perplexity,
        total_ratio=total,
        max_total_ratio=options.max_total_ratio,
        within_total_budget=total <= options.max_total_ratio,
    )
