"""EL, MA and probes of all requests of a run and of earlier ones, beside their limits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.engine.baseline import Baseline
from worker.engine.criterion import Judgement, Threshold, Verdict, beyond_training, judge
from worker.engine.earlier import measure_earlier
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.probes import Answer, answers
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM, Tokenizer


@dataclass(frozen=True, slots=True)
class Verdicts:
    """EL, MA and probes of all requests of a run and of earlier ones, beside their limits.

    Attributes:
        judgement: The set criterion, over the counted requests of the run; the verdicts are `verdicts` and `earlier`.
        verdicts: The verdict of every request of the run: a request of which a probe is answered fails.
        earlier: The verdict of every request of an earlier job.
        earlier_exact: How many of these are by EL itself. Those of the others are by a lower bound of it, and by MA.
        answered: How many probes are answered.
        ended: Whether a miss ended the test, so that no probe was asked.
    """

    judgement: Judgement
    verdicts: list[Verdict]
    earlier: list[Verdict]
    earlier_exact: int
    answered: int
    ended: bool

    @property
    def passed(self) -> bool:
        """The set criterion and every verdict hold, and no probe is answered."""
        return self.judgement.set_passed and not self.answered and all(v.passed for v in self.verdicts + self.earlier)


def el_and_ma(
    model: CausalLM, forget: ForgetSet, thresholds: list[Threshold], options: Options, progress: Progress
) -> tuple[list[float], list[float]]:
    """EL and MA of every sequence, computed in full."""
    ma = [accuracy(row) for row in token_matches(model, forget.sequences)]
    return extraction_likelihoods(model, forget.sequences, thresholds, options, progress), ma


def answered_requests(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> tuple[list[int], list[Answer]]:
    """For each probe that the model answers, greedily or in a sample, the index of its request; and these answers."""
    given = answers(model, tokenizer, data.probes, options, progress)
    answered = [probe.request for probe, said in zip(data.probes, given, strict=True) if said]
    return answered, [answer for said in given for answer in said]


def measure_requests(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    progress: Progress = no_progress,
    *,
    back: Sequence[int] = (),
    ends_at_miss: bool = False,
) -> Verdicts:
    """EL, MA and probes of a model, for every request; the arguments are those of `measure_after`."""
    of_earlier = baseline.sequence_thresholds(data.earlier)
    el, ma = el_and_ma(model, data.forget, baseline.thresholds, options, partial_progress(progress, 0.0, 0.6))
    earlier_el, earlier_ma, exact = measure_earlier(
        model, data, of_earlier, [*baseline.watched, *back], options, partial_progress(progress, 0.6, 0.2)
    )
    everything, thresholds = data.forget + data.earlier, baseline.thresholds + of_earlier
    judgement = judge(everything, thresholds, el + earlier_el, ma + earlier_ma, counted=baseline.counted)
    trained = {*baseline.memorised, *data.earlier.requests}
    ended = ends_at_miss and not judgement.passed and not beyond_training(judgement.verdicts, trained)
    asking = partial_progress(progress, 0.8, 0.2)
    answered = [] if ended else answered_requests(model, tokenizer, data, options, asking)[0]
    tested = [replace(v, passed=v.passed and v.request not in answered) for v in judgement.verdicts]
    own = set(data.forget.requests)
    verdicts, earlier = ([v for v in tested if (v.request in own) == mine] for mine in (True, False))
    return Verdicts(judgement, verdicts, earlier, exact, len(answered), ended)
