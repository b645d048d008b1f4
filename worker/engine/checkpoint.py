"""A run after some epoch: what training continues from, and what is merged."""

import math
from dataclasses import dataclass, field, replace

from worker.engine.criterion import beyond_training
from worker.engine.forget_set import ForgetSet
from worker.engine.measure import ArtefactReport
from worker.engine.merge import shrunk
from worker.engine.types import AdapterState, EpochEntry

MOST_HARM = (True, True, math.inf)


@dataclass(slots=True)
class Checkpoint:
    """A run after some epoch; everything random in the next epoch follows from the seed and the epoch's number.

    Attributes:
        epoch: Epochs done.
        adapter: The adapter's factors.
        optimiser: AdamW's state.
        history: One mapping for each epoch.
        met: The criterion held when training stopped, and no epoch is to repair, to keep or to settle.
        passing: The factors that met the criterion with the least harm; empty if none did.
        passing_strength: Their strength.
        least_harm: Their harm, as in `worker.engine.pace`.
        strength: The share of the change that is applied; less than 1 if a smaller share suffices.
        reopened: Requests that failed the full test, or whose EL failed training's sample, after MA had passed.
        back: Earlier requests that failed a full test, in that order: training looks at them from then on.
        verified: How often a full test has failed.
        tested: The adapter that failed last.
        correction: The correction of `loss: distil`.
        rows: The request of each sequence that the following is about.
        gaps: The gaps of the reference of `loss: distil`, for each sequence of the forget set, and no other.
        shifts: Its shifts, likewise.
    """

    epoch: int = 0
    adapter: AdapterState = field(default_factory=dict)
    optimiser: dict[str, object] = field(default_factory=dict)
    history: list[EpochEntry] = field(default_factory=list)
    met: bool = False
    passing: AdapterState = field(default_factory=dict)
    passing_strength: float = 1.0
    least_harm: tuple[bool, bool, float] = MOST_HARM
    strength: float = 1.0
    reopened: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    verified: int = 0
    tested: AdapterState = field(default_factory=dict)
    correction: dict[str, list[float]] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    gaps: list[list[float]] = field(default_factory=list)
    shifts: list[list[float]] = field(default_factory=list)

    @property
    def final(self) -> AdapterState:
        """The factors that are merged: the adapter's factors at the checkpoint's strength."""
        return shrunk(self.adapter, self.strength)

    def fitted(self, forget: ForgetSet) -> "Checkpoint":
        """The same, without what it says of single sequences if they are others: an earlier request was purged."""
        fits = self.rows == tuple(forget.request_ids[: len(self.rows)])
        return self if fits else replace(self, rows=(), gaps=[], shifts=[])

    def with_passing(self, harm: tuple[bool, bool, float]) -> "Checkpoint":
        """The same; its factors are those that pass if its last epoch met the criterion with the least harm so far."""
        if not self.history[-1]["met"] or harm >= self.least_harm:
            return self
        return replace(self, passing=self.adapter, passing_strength=self.strength, least_harm=harm)

    def is_last(self, last_epoch: int) -> bool:
        """Whether nothing is trained after it: the criterion was met, or no epoch is left."""
        return self.met or self.epoch >= last_epoch

    def may_go_on(self, last_epoch: int) -> bool:
        """Whether the run goes on if the full test of this checkpoint fails where that may help."""
        return self.met and (self.strength < 1 or self.epoch < last_epoch)

    def ended(self, last_epoch: int) -> "Checkpoint":
        """The same; at the end of a run with the factors that pass, if any do, which may not be the last epoch's."""
        if not self.passing or not self.is_last(last_epoch):
            return self
        return replace(self, adapter=self.passing, strength=self.passing_strength, met=True)

    def reopen(self, report: ArtefactReport, last_epoch: int) -> "Checkpoint | None":
        """The checkpoint to continue from if the full test failed although training's sample had passed.

        First the whole change is applied instead of a share of it. If that fails too, training continues and looks at
        the requests that failed. A test that ended at a miss has asked no probes; training asks them when it continues.

        Args:
            report: The result of `measure_after` on the merged model.
            last_epoch: The run's last epoch.

        Returns:
            A checkpoint, or None if no further training would help.
        """
        after = report.after
        tested = [*report.per_record, *report.earlier]
        trained = {v.request for v in [*after.verdicts, *report.earlier]}
        criterion_held = report.reason not in ("criterion_missed", "earlier_request_regressed", "probe_answered")
        helpless = beyond_training(tested, trained) and report.reason != "probe_answered"
        if criterion_held or helpless or not self.may_go_on(last_epoch):
            return None
        failed = {v.request for v in tested if not v.passed} & trained
        failed = failed or {v.request for v in after.verdicts if v.el > after.el_limit}
        reopened = replace(
            self,
            reopened=tuple(sorted(failed)),
            back=tuple(dict.fromkeys([*self.back, *(v.request for v in report.earlier if not v.passed)])),
            verified=self.verified + 1,
            tested=self.final,
            passing={},
            least_harm=MOST_HARM,
        )
        return replace(reopened, strength=1.0) if self.strength < 1 else replace(reopened, met=False)
