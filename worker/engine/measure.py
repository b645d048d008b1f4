"""Measures a model on a run's sets: thresholds and the state before training, and the state after.

The measurements before training are final: the certificate has these thresholds, whatever happens later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from worker.engine.attacks import OF_EVERY_TEXT, AttackResult, run_attacks, unseen_needed
from worker.engine.attacks.subject import Subject, alike, windows_of_each
from worker.engine.baseline import Baseline
from worker.engine.criterion import Judgement, Threshold, Verdict, judge
from worker.engine.data import nearest
from worker.engine.earlier import watched_requests
from worker.engine.errors import HeldoutTooFew
from worker.engine.heldout import known_by_heart, measured_thresholds
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.probes import ProbeCounts
from worker.engine.progress import Progress, StageProgress, no_progress, no_stage_progress, partial_progress
from worker.engine.samples import own_samples
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.utility import Utility, compare, measure_quality
from worker.engine.verdicts import answered_requests, el_and_ma, measure_requests


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
        HeldoutTooFew: An attack that blocks would have no test at its level beside so few held-out texts.
        HeldoutKnown: The parent knows more than a tenth of the held-out texts by heart, or too few others are left, or
            it knows numbers in them.
        NotCausal: It reads the text that follows.
    """
    everything = (data.forget + data.earlier).sequences
    thresholds, known = measured_thresholds(model, tokenizer, data, options, partial_progress(progress, 0.0, 0.8))
    by_length = {len(ids): threshold for ids, threshold in zip(everything, thresholds, strict=True)}
    thresholds = thresholds[: len(data.forget.sequences)]
    watched = watched_requests(model, data, by_length, options, partial_progress(progress, 0.8, 0.05))
    el, ma = el_and_ma(model, data.forget, thresholds, options, partial_progress(progress, 0.85, 0.05))
    before = judge(data.forget, thresholds, el, ma)
    answered, said = answered_requests(model, tokenizer, data, options, partial_progress(progress, 0.9, 0.05))
    quality = measure_quality(model, data, options)
    first = quality.heldout_perplexity if first_perplexity is None else first_perplexity
    baseline = Baseline(thresholds, by_length, watched, before, quality, first, known, answered, said)
    if data.spare and baseline.counted:
        known = known_by_heart(model, [*data.used_heldout, *data.spare], partial_progress(progress, 0.95, 0.05))
        baseline = replace(baseline, known_heldout=known)
    _, forget, unseen = _compared(baseline.without_known(data), baseline, options)
    needed = unseen_needed(len(forget), options.attacks, OF_EVERY_TEXT)
    if len(unseen) < needed:  # by how many is not said: it would tell how long the texts are
        raise HeldoutTooFew(f"heldout: attacks that block need {needed} texts as long as those to forget")
    progress(1.0)
    return baseline


def with_samples(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    progress: StageProgress = no_stage_progress,
) -> Baseline:
    """Add what the parent says to its measurements: the answers to probes, and its own samples.

    Args:
        model: The parent.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        baseline: Its measurements.
        options: The run's options.
        progress: Called with ("initialise", fraction 0..0.5).

    Returns:
        The measurements with `said` and `samples`; the same ones if they have samples.
    """
    if baseline.samples is not None:
        return baseline
    asking, drawing = (partial_progress(partial(progress, "initialise"), start, 0.25) for start in (0.0, 0.25))
    said = baseline.said or []
    if baseline.answered and baseline.said is None:
        _, said = answered_requests(model, tokenizer, data, options, asking)
    data = replace(data, forget=data.forget.only(baseline.memorised))  # nobody who is to be forgotten is held fast
    return replace(baseline, said=said, samples=own_samples(model, tokenizer, data, options, said, drawing))


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
        attacks: What every attack found; none if the test ended at a miss.
        probes: How many prompts brought out a secret; none were asked if the test ended at a miss.
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
    ends_at_miss: bool = False,
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
        ends_at_miss: Whether to ask no probe and run no attack if EL or MA fails where more training may help. No
            record is made of such a test: the run goes on.

    Returns:
        The results of the tests.
    """
    tested = measure_requests(
        model,
        tokenizer,
        data,
        baseline,
        options,
        partial_progress(progress, 0.0, 0.5),
        back=back,
        ends_at_miss=ends_at_miss,
    )
    after = replace(
        tested.judgement, verdicts=tuple(v for v in tested.verdicts if v.request in set(baseline.memorised))
    )
    utility = compare(baseline.quality, measure_quality(model, data, options), baseline.first_perplexity, options)
    attacks: list[AttackResult] = []
    if not tested.ended:
        subject = _subject(model, tokenizer, data, baseline, options)
        attacks = run_attacks(subject, options.attacks, partial_progress(progress, 0.5, 0.5))
    reason = utility.reason or blocked_by(attacks, options.attacks)
    reason = "probe_answered" if tested.answered else reason
    reason = reason if all(v.passed for v in tested.earlier) else "earlier_request_regressed"
    own = set(data.forget.requests)
    missed = any(not v.passed for v in tested.judgement.verdicts if v.request in own)
    reason = "criterion_missed" if missed or not tested.judgement.set_passed else reason
    return ArtefactReport(
        reason,
        distinct_thresholds(baseline.thresholds + baseline.sequence_thresholds(data.earlier)),
        baseline.judge_memorised(data.forget),
        after,
        tested.verdicts,
        tested.earlier,
        tested.earlier_exact,
        utility,
        attacks,
        ProbeCounts(
            0 if tested.ended else len(data.probes), options.probe_samples, len(baseline.answered), tested.answered
        ),
    )


def blocked_by(attacks: Sequence[AttackResult], policy: Mapping[str, str]) -> str | None:
    """The reason why attacks that block keep a version from being published: one succeeded, or could not be run."""
    blocking = [attack for attack in attacks if policy.get(attack.name) == "block"]
    if any(attack.passed is False for attack in blocking):
        return "attack_succeeded"
    could_not = any(attack.status == "NOT_RUN" and attack.why != "not_applicable" for attack in blocking)
    return "attack_not_run" if could_not else None


def _compared(
    data: Prepared, baseline: Baseline, options: Options
) -> tuple[list[list[list[int]]], list[list[int]], list[list[int]]]:
    """The windows of each counted request, one window of each, and held-out sequences of these sets and lengths."""
    requests = windows_of_each(data.forget.only(baseline.counted), options.seed)
    drawn = [windows[0] for windows in requests]
    needed = unseen_needed(len(drawn), options.attacks)
    forget, unseen = alike(data.control, drawn, needed, options.seed)
    if needed > len(unseen):
        forget, unseen = alike([*data.control, *data.spare], drawn, needed, options.seed)
    return requests, forget, unseen


def _subject(model: CausalLM, tokenizer: Tokenizer, data: Prepared, baseline: Baseline, options: Options) -> Subject:
    """What attacks work on."""
    heldout = baseline.without_known(data)
    requests, forget, unseen = _compared(heldout, baseline, options)
    every = [*heldout.control, *heldout.spare]
    near: list[list[int]] = []
    if options.attacks.get("relearned", "off") != "off":  # no other attack reads them, and many are compared
        near = nearest(data.all_retain, [*forget, *unseen], options.utility_sequences)  # alike to both sides
    return Subject(
        model, tokenizer, forget, unseen, data.retain, near, requests, heldout=every, length=options.sequence_length
    )
