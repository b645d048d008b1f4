"""What a run does to the rest of the model: perplexities, and how well it still knows what is most like the forgotten.

A mean over ordinary text hides harm to the neighbours of what was forgotten: other people's records of the same kind.
So the retain sequences that share most tokens with the forget set are measured by themselves. A loss of MA or of mean
log-likelihood there has a limit of its own. A gain has none: training on retain text is meant to keep it.
"""

from dataclasses import dataclass

from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.metrics.perplexity import mean_loss, perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.types import CausalLM


@dataclass(frozen=True, slots=True)
class Quality:
    """What a model can do besides the forget set.

    Attributes:
        heldout_perplexity: Perplexity on held-out text.
        retain_perplexity: Perplexity on retain text.
        neighbour_ma: Mean MA of the retain sequences that are most like the forget set.
        neighbour_loss: Their mean negative log-likelihood a token, in nats.
    """

    heldout_perplexity: float
    retain_perplexity: float
    neighbour_ma: float
    neighbour_loss: float


@dataclass(frozen=True, slots=True)
class Utility:
    """The parent's and the artefact's quality, the first version's perplexity, and whether the limits were kept.

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
        neighbour_ma=mean_accuracy(model, data.neighbours),
        neighbour_loss=mean_loss(model, data.neighbours),
    )


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
    lost = max(before.neighbour_ma - after.neighbour_ma, after.neighbour_loss - before.neighbour_loss)
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
        neighbour_ma_before=before.neighbour_ma,
        neighbour_ma_after=after.neighbour_ma,
        neighbour_loss_before=before.neighbour_loss,
        neighbour_loss_after=after.neighbour_loss,
        max_neighbour_loss=options.max_neighbour_loss,
        within_neighbour_limit=lost <= options.max_neighbour_loss,
    )
