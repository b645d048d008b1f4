"""Measures a model on a run's sets: thresholds and the state before training, and the state after.

The measurements before training are final: the certificate has these thresholds, whatever happens later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worker.engine.attacks import AttackResult, Subject, cut_alike, one_of_each, run_attacks
from worker.engine.criterion import Judgement, Threshold, Verdict, judge
from worker.engine.earlier import measure_earlier, watched_requests
from worker.engine.forget_set import ForgetSet
from worker.engine.heldout import measured_thresholds
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.probes import Answer, ProbeCounts, answers
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.utility import Quality, Utility, compare, measure_quality


@dataclass(frozen=True, slots=True)
class Baseline:
    """The parent model, measured before anything is trained.

    Attributes:
        thresholds: The threshold of each forget sequence.
        by_length: Tokens of a sequence -> its threshold: for those of earlier requests, too.
        watched: The earlier requests that training watches: those nearest to their limits, and some drawn by the run.
        before: EL, MA and verdicts of the parent on all requests of the run.
        quality: What else the parent can do.
        first_perplexity: Held-out perplexity of the first version, on the same sequences.
        known_heldout: Held-out sequences that the parent knows by heart. They set no threshold, and no attack compares
            with them.
        answered: For each probe that the parent answers, the index of its request.
        said: These answers. They are personal data, and so in memory alone; None in a process that has not asked.
    """

    thresholds: list[Threshold]
    by_length: dict[int, Threshold]
    watched: list[int]
    before: Judgement
    quality: Quality
    first_perplexity: float
    known_heldout: list[list[int]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    said: list[Answer] | None = None

    @property
    def memorised(self) -> list[int]:
        """The requests that the parent knows: their texts do not look unseen, or it answers a probe of theirs."""
        return [v.request for v in self.before.verdicts if not v.looks_unseen or v.request in self.answered]

    @property
    def counted(self) -> list[int]:
        """The requests whose texts are trained on, counted and attacked: those whose texts do not look unseen.

        If only probes are answered, they are those of the probes. Else unseen texts would dilute what is measured.
        """
        return [v.request for v in self.before.verdicts if not v.looks_unseen] or self.memorised

    def without_known(self, data: Prepared) -> Prepared:
        """The sets of the run without the held-out sequences that the parent knows by heart."""
        thresholds, utility = (
            [ids for ids in side if ids not in self.known_heldout] for side in (data.threshold_sequences, data.utility)
        )
        return replace(data, threshold_sequences=thresholds, utility=utility)

    def sequence_thresholds(self, forget: ForgetSet) -> list[Threshold]:
        """The threshold of each sequence of requests of the run or of earlier ones."""
        nearest = {len(ids): min(self.by_length, key=lambda n: abs(n - len(ids))) for ids in forget.sequences}
        return [self.by_length[nearest[len(ids)]] for ids in forget.sequences]

    def training_set(self, data: Prepared, back: Sequence[int] = ()) -> tuple[ForgetSet, list[Threshold]]:
        """The sequences that training looks at, with their thresholds: of counted requests and of some earlier ones.

        They are those that are watched, then those that came `back` in a full test, in that order.
        """
        looked_at = data.forget.only(self.counted) + data.earlier.only(self.watched)
        for request in back:
            looked_at += data.earlier.only([request] if request not in self.watched else [])
        return looked_at, self.sequence_thresholds(looked_at)

    def judge_memorised(self, forget: ForgetSet) -> Judgement:
        """The judgement before, over the memorised requests alone; each sequence counts with its request's mean."""
        by_request = {v.request: v for v in self.before.verdicts}
        el, ma = ([getattr(by_request[request_id], name) for request_id in forget.request_ids] for name in ("el", "ma"))
        judgement = judge(forget, self.thresholds, el, ma, counted=self.counted)
        return replace(judgement, verdicts=tuple(v for v in self.before.verdicts if v.request in self.memorised))

    def as_dict(self) -> dict[str, object]:
        """Plain values, for a file; without what was said."""
        return {**asdict(replace(self, said=None)), "before": self.before.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Baseline":
        """The inverse of `as_dict`."""
        before = {k: v for k, v in values["before"].items() if k != "passed"}
        before["verdicts"] = tuple(Verdict(**v) for v in before["verdicts"])
        thresholds = [Threshold(**threshold) for threshold in values["thresholds"]]
        by_length = {int(length): Threshold(**threshold) for length, threshold in values["by_length"].items()}
        others = (values[name] for name in ("first_perplexity", "known_heldout", "answered"))
        judged = (values["watched"], Judgement(**before), Quality(**values["quality"]))
        return cls(thresholds, by_length, *judged, *others)


def measure_before(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    options: Options,
    progress: Progress = no_progress,
    *,
    first_perplexity: float | None = None,
) -> Baseline:
    """Thresholds from held-out text, and EL, MA, answered probes and perplexity of the parent model.

    Args:
        model: The parent model.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.
        first_perplexity: Perplexity of the first version on `data.utility`; None if the parent is the first version.

    Returns:
        The measurements that are fixed before training.

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
        HeldoutKnown: The parent knows more than a tenth of the held-out texts by heart, or too few others are left.
    """
    everything = (data.forget + data.earlier).sequences
    thresholds, known = measured_thresholds(model, data, options, partial_progress(progress, 0.0, 0.8))
    by_length = {len(ids): threshold for ids, threshold in zip(everything, thresholds, strict=True)}
    thresholds = thresholds[: len(data.forget.sequences)]
    watched = watched_requests(model, data, by_length, options, partial_progress(progress, 0.8, 0.05))
    el, ma = el_and_ma(model, data.forget, thresholds, options, partial_progress(progress, 0.85, 0.05))
    before = judge(data.forget, thresholds, el, ma)
    answered, said = answered_requests(model, tokenizer, data, options, partial_progress(progress, 0.9, 0.05))
    quality = measure_quality(model, data, options)
    progress(1.0)
    first = quality.heldout_perplexity if first_perplexity is None else first_perplexity
    return Baseline(thresholds, by_length, watched, before, quality, first, known, answered, said)


def answered_requests(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> tuple[list[int], list[Answer]]:
    """For each probe that the model answers, greedily or in a sample, the index of its request; and these answers."""
    given = answers(model, tokenizer, data.probes, options, progress)
    answered = [probe.request for probe, said in zip(data.probes, given, strict=True) if said]
    return answered, [answer for said in given for answer in said]


def el_and_ma(
    model: CausalLM, forget: ForgetSet, thresholds: list[Threshold], options: Options, progress: Progress
) -> tuple[list[float], list[float]]:
    """EL and MA of every sequence, computed in full."""
    ma = [accuracy(row) for row in token_matches(model, forget.sequences)]
    return extraction_likelihoods(model, forget.sequences, thresholds, options, progress), ma


def distinct_thresholds(thresholds: Sequence[Threshold]) -> list[Threshold]:
    """Each threshold once, by length."""
    return sorted(set(thresholds), key=lambda threshold: threshold.length)


@dataclass(frozen=True, slots=True)
class ArtefactReport:
    """The results of the tests of a model that was trained, merged and loaded again.

    Attributes:
        reason: None, "criterion_missed", "earlier_request_regressed", "probe_answered", "attack_succeeded",
            "attack_not_run", or one of `Utility`.
        thresholds: Each threshold once, by length.
        before: The judgement of the memorised requests on the parent.
        after: The same on the artefact.
        per_record: The verdict of every request.
        earlier: The verdict of every request of an earlier job.
        earlier_exact: How many of these are by EL itself. Those of the others are by a lower bound of it, and by MA.
        utility: What the run did to the rest of the model.
        attacks: What every attack found.
        probes: How many prompts brought out a secret.
    """

    reason: str | None
    thresholds: list[Threshold]
    before: Judgement
    after: Judgement
    per_record: list[Verdict]
    earlier: list[Verdict]
    earlier_exact: int
    utility: Utility
    attacks: list[AttackResult]
    probes: ProbeCounts

    @property
    def passed(self) -> bool:
        """Every test holds."""
        return self.reason is None

    def as_dict(self) -> dict[str, object]:
        """Plain values, `passed` included."""
        judgements = {"before": self.before.as_dict(), "after": self.after.as_dict()}
        return {**asdict(self), **judgements, "passed": self.passed}


def measure_after(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    progress: Progress = no_progress,
    *,
    back: Sequence[int] = (),
) -> ArtefactReport:
    """Test a model that was trained, merged and loaded again.

    Every request is measured and must pass its verdict, also a request that was not trained on because it looked
    unseen to the parent, and a request of an earlier job. The set criterion is over the memorised requests. Of earlier
    jobs EL itself is measured for the requests that training has looked at, and for those that are nearest to limits.

    Args:
        model: The artefact under test.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        baseline: The measurements that were fixed before training.
        options: The run's options.
        progress: Called with the fraction done, 0..1.
        back: Earlier requests that failed such a test before.

    Returns:
        The results of the tests.
    """
    everything, of_earlier = data.forget + data.earlier, baseline.sequence_thresholds(data.earlier)
    thresholds = baseline.thresholds + of_earlier
    el, ma = el_and_ma(model, data.forget, baseline.thresholds, options, partial_progress(progress, 0.0, 0.3))
    earlier_el, earlier_ma, exact = measure_earlier(
        model, data, of_earlier, [*baseline.watched, *back], options, partial_progress(progress, 0.3, 0.1)
    )
    judgement = judge(everything, thresholds, el + earlier_el, ma + earlier_ma, counted=baseline.counted)
    answered, _ = answered_requests(model, tokenizer, data, options, partial_progress(progress, 0.4, 0.1))
    tested = [replace(v, passed=v.passed and v.request not in answered) for v in judgement.verdicts]
    own = set(data.forget.requests)
    verdicts, earlier = ([v for v in tested if (v.request in own) == mine] for mine in (True, False))
    after = replace(judgement, verdicts=tuple(v for v in verdicts if v.request in set(baseline.memorised)))
    utility = compare(baseline.quality, measure_quality(model, data, options), baseline.first_perplexity, options)
    attacks = run_attacks(
        _subject(model, tokenizer, data, baseline, options), options.attacks, partial_progress(progress, 0.5, 0.5)
    )
    reason = utility.reason or blocked_by(attacks, options.attacks)
    reason = "probe_answered" if answered else reason
    reason = reason if all(v.passed for v in earlier) else "earlier_request_regressed"
    missed = any(not v.passed for v in judgement.verdicts if v.request in own) or not judgement.set_passed
    reason = "criterion_missed" if missed else reason
    return ArtefactReport(
        reason,
        distinct_thresholds(thresholds),
        baseline.judge_memorised(data.forget),
        after,
        verdicts,
        earlier,
        exact,
        utility,
        attacks,
        ProbeCounts(len(data.probes), options.probe_samples, len(baseline.answered), len(answered)),
    )


def blocked_by(attacks: Sequence[AttackResult], policy: Mapping[str, str]) -> str | None:
    """The reason why attacks that block keep a version from being published: one succeeded, or could not be run."""
    blocking = [attack for attack in attacks if policy.get(attack.name) == "block"]
    if any(attack.passed is False for attack in blocking):
        return "attack_succeeded"
    could_not = any(attack.status == "NOT_RUN" and attack.why != "not_applicable" for attack in blocking)
    return "attack_not_run" if could_not else None


def _subject(model: CausalLM, tokenizer: Tokenizer, data: Prepared, baseline: Baseline, options: Options) -> Subject:
    """What attacks work on: a window of each counted request, beside all held-out sequences."""
    forget = one_of_each(data.forget.only(baseline.counted), options.seed)
    heldout = baseline.without_known(data)
    unseen = cut_alike([*heldout.threshold_sequences, *heldout.only_utility], forget, options.seed)
    return Subject(model, tokenizer, forget, unseen, data.retain)
