"""What a run does to the rest of the model: perplexities, and how well it still knows what is most like the forgotten.

A mean over ordinary text hides harm to the neighbours of what was forgotten: other people's records of the same kind.
So the sequences that share most tokens with the forget set are measured by themselves: those of the retain file, and
those of each set of neighbours that the operator named. So are those that share most with a probe and its secret:
others' answers are short, and lost first. A loss of MA or of mean log-likelihood in any of them has a limit of its own.
A gain has none: training on retain text is meant to keep it.
"""

import math
from dataclasses import dataclass, field

from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.metrics.perplexity import mean_loss, perplexity
from worker.engine.options import DISTIL, Options
from worker.engine.prepare import KINDS, Prepared
from worker.engine.types import CausalLM, EpochEntry

NOTHING_LEFT = (0.0, 0.0)  # of a set whose every text contains one to forget: it cannot lose anything
WATCHED = 16  # sequences of each set of neighbours that training looks at


@dataclass(frozen=True, slots=True)
class Quality:
    """What a model can do besides the forget set.

    Attributes:
        heldout_perplexity: Perplexity on held-out text.
        retain_perplexity: Perplexity on retain text.
        neighbours: Of each set and kind of neighbours the mean MA, and the mean negative log-likelihood a token, in
            nats.
    """

    heldout_perplexity: float
    retain_perplexity: float
    neighbours: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Utility:
    """The parent's and the artefact's quality, the first version's perplexity, and whether the limits were kept.

    Of the sets of neighbours it has the one that lost most; `neighbour_set` is its index, 0 for the retain file.
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
    neighbour_set: int
    neighbour_ma_before: float
    neighbour_ma_after: float
    neighbour_loss_before: float
    neighbour_loss_after: float
    max_neighbour_loss: float
    within_neighbour_limit: bool

    @property
    def reason(self) -> str | None:
        """Why a version may not be published, a code."""
        if not self.within_budget:
            return "utility_budget_exceeded"
        if not self.within_total_budget:
            return "total_utility_budget_exceeded"
        return None if self.within_neighbour_limit else "neighbours_lost"


def measure_quality(model: CausalLM, data: Prepared, options: Options) -> Quality:
    """The quality of a model on the sets of a run."""
    return Quality(
        heldout_perplexity=perplexity(model, data.utility),
        retain_perplexity=perplexity(model, data.retain[: options.utility_sequences]),
        neighbours=[_known(model, near) if near else NOTHING_LEFT for near in data.neighbours],
    )


def _known(model: CausalLM, near: list[list[int]]) -> tuple[float, float]:
    """Mean MA, and mean negative log-likelihood a token, in nats."""
    return mean_accuracy(model, near), mean_loss(model, near)


def _lost(before: tuple[float, float], after: tuple[float, float]) -> float:
    """What was lost of MA, or of log-likelihood a token: the greater of the two."""
    return max(before[0] - after[0], after[1] - before[1])


def compare(before: Quality, after: Quality, first_perplexity: float, options: Options) -> Utility:
    """The change of quality, and whether it is within the limits.

    Args:
        before: The parent's.
        after: The artefact's.
        first_perplexity: Held-out perplexity of the first version.
        options: The run's options.

    Returns:
        All values, before and after.
    """
    ratio, total = after.heldout_perplexity / before.heldout_perplexity, after.heldout_perplexity / first_perplexity
    pairs = list(zip(before.neighbours, after.neighbours, strict=True))
    lost = [_lost(*pair) if tuple(pair[0]) != NOTHING_LEFT else -math.inf for pair in pairs]
    worst = lost.index(max(lost))
    (ma_before, loss_before), (ma_after, loss_after) = pairs[worst]
    return Utility(
        heldout_perplexity_before=before.heldout_perplexity,
        heldout_perplexity_after=after.heldout_perplexity,
        heldout_ratio=ratio,
        retain_perplexity_before=before.retain_perplexity,
        retain_perplexity_after=after.retain_perplexity,
        retain_ratio=after.retain_perplexity / before.retain_perplexity,
        max_ratio=options.max_perplexity_ratio,
        within_budget=ratio <= options.max_perplexity_ratio,
        first_heldout_perplexity=first_perplexity,
        total_ratio=total,
        max_total_ratio=options.max_total_ratio,
        within_total_budget=total <= options.max_total_ratio,
        neighbour_set=worst // KINDS,
        neighbour_ma_before=ma_before,
        neighbour_ma_after=ma_after,
        neighbour_loss_before=loss_before,
        neighbour_loss_after=loss_after,
        max_neighbour_loss=options.max_neighbour_loss,
        within_neighbour_limit=lost[worst] <= options.max_neighbour_loss,
    )


@dataclass(frozen=True, slots=True)
class Watched:
    """What training looks at after each epoch beside the forget set, and what the parent makes of it.

    Attributes:
        utility: Held-out sequences.
        parent_perplexity: The parent's perplexity on them.
        neighbours: Of each set and kind of neighbours the likest sequences, WATCHED at most.
        parent_neighbours: Of each of these sets the parent's mean MA, and its mean negative log-likelihood a token.
        samples: Samples of the parent that nothing is trained on: what it says by itself, whoever it is about.
        parent_samples_loss: The parent's negative log-likelihood a token on them, the mean over the samples. The
            model's, less this, is about KL(parent || model): the parent did not draw the opening tokens.
    """

    utility: list[list[int]]
    parent_perplexity: float
    neighbours: list[list[list[int]]] = field(default_factory=list)
    parent_neighbours: list[tuple[float, float]] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    parent_samples_loss: float = 0.0

    @classmethod
    def of_run(
        cls, parent: CausalLM, data: Prepared, parent_perplexity: float, options: Options, samples: list[list[int]]
    ) -> "Watched":
        """What a run looks at. At a fixed rate only distillation looks at neighbours: else nothing would follow."""
        follows = options.adaptive or options.loss == DISTIL
        likest = [near[:WATCHED] for near in data.neighbours if near] if follows else []
        known = [_known(parent, near) for near in likest]
        return cls(data.utility, parent_perplexity, likest, known, samples, _loss_by_sequences(parent, samples))

    def measure(self, model: CausalLM) -> EpochEntry:
        """Held-out perplexity, and what was lost.

        `neighbours_lost` is of MA or of log-likelihood a token, in nats, of the set of neighbours that lost most;
        `samples_lost` is of the log-likelihood of the parent's samples.
        """
        known = zip(self.neighbours, self.parent_neighbours, strict=True)
        lost = [_lost(before, _known(model, near)) for near, before in known]
        entry: EpochEntry = {"perplexity": perplexity(model, self.utility)}
        if lost:
            entry["neighbours_lost"] = max(lost)
        if self.samples:
            entry["samples_lost"] = _loss_by_sequences(model, self.samples) - self.parent_samples_loss
        return entry


def _loss_by_sequences(model: CausalLM, sequences: list[list[int]]) -> float:
    """The mean over sequences of negative log-likelihood a token: a short answer counts as much as a long text."""
    return sum(mean_loss(model, [ids]) for ids in sequences) / max(1, len(sequences))
