"""What was measured on the parent model before anything was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worker.engine.criterion import Judgement, Threshold, Verdict, judge
from worker.engine.forget_set import ForgetSet
from worker.engine.prepare import Prepared
from worker.engine.probes import Answer
from worker.engine.samples import OwnSamples
from worker.engine.utility import Quality


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
        samples: What the parent says by itself; in memory alone, too. None until they are drawn.
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
    samples: OwnSamples | None = field(default=None, repr=False)

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
        unknown: dict[str, Any] = {
            use: [ids for ids in sequences if ids not in self.known_heldout] for use, sequences in data.heldout.items()
        }
        return replace(data, **unknown)

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
        return {**asdict(replace(self, said=None, samples=None)), "before": self.before.as_dict()}

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
