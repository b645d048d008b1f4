"""EL of sequences, each with the n of its threshold."""

from collections.abc import Iterator, Sequence

from worker.engine.criterion import Threshold
from worker.engine.generate import end_tokens
from worker.engine.metrics.decode import GreedyDecoding, greedy_continuations
from worker.engine.metrics.extraction import likelihood
from worker.engine.options import Options
from worker.engine.progress import Progress, no_progress
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
) -> Iterator[GreedyDecoding]:
    """Greedy continuations as far as EL_n needs them; generation stops at the model's own end-of-text tokens."""
    return greedy_continuations(
        model, sequences, eos_token_id=end_tokens(model), n=n, row_budget=options.row_budget, progress=progress
    )
