"""Requests of earlier jobs: all are measured again, at a cost that hardly grows with their number.

A forward pass gives MA and a lower bound of EL; EL itself takes a hundred, and training measures after every few steps.
So training looks at about as many sequences as the run forgets, `earlier_sample` at most: half are those nearest to
their limits, half are drawn anew in each run. On the result EL is measured of these, of half as many that are then
nearest, and of what came back in the run.
"""

import random
from collections.abc import Mapping, Sequence

from worker.engine.criterion import Threshold
from worker.engine.data import chunks
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM

AT_ONCE = 256  # sequences between two reports of progress
FEWEST_WATCHED = 16  # sequences, however few the run forgets; of fewer, more came back (RESULTS, `bench.history`)


def watched_requests(
    model: CausalLM,
    data: Prepared,
    by_length: Mapping[int, Threshold],
    options: Options,
    progress: Progress = no_progress,
) -> list[int]:
    """The requests of earlier jobs that a run watches: all, or those with `most_watched` sequences.

    Args:
        model: The parent model.
        data: The sets of the run; the name of the run draws half of them.
        by_length: Tokens of a sequence -> its threshold.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        Their request_ids.
    """
    earlier, most = data.earlier, most_watched(data, options)
    if len(earlier.sequences) <= most:
        return earlier.requests
    thresholds = [by_length[len(ids)] for ids in earlier.sequences]
    nearest = _by_nearness(earlier, thresholds, *_bounds_and_ma(model, earlier, thresholds, progress))
    near = _first(earlier, nearest, most // 2)
    others = [request for request in earlier.requests if request not in set(near)]
    random.Random(f"{options.seed}/{data.run}").shuffle(others)
    return sorted([*near, *_first(earlier, others, most // 2)])


def most_watched(data: Prepared, options: Options) -> int:
    """The sequences of earlier jobs that a run watches: as many as it forgets, within bounds."""
    return min(options.earlier_sample, max(FEWEST_WATCHED, len(data.forget.sequences)))


def measure_earlier(
    model: CausalLM,
    data: Prepared,
    thresholds: Sequence[Threshold],
    watched: Sequence[int],
    options: Options,
    progress: Progress = no_progress,
) -> tuple[list[float], list[float], int]:
    """EL, or a lower bound of it, and MA of each sequence of earlier jobs.

    Args:
        model: The model under test.
        data: The sets of the run.
        thresholds: The threshold of each sequence of earlier jobs.
        watched: The requests whose EL is measured in any case.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        (EL of each sequence, MA of each, the number of requests whose EL is no bound).
    """
    earlier, most = data.earlier, most_watched(data, options)
    el, ma = _bounds_and_ma(model, earlier, thresholds, partial_progress(progress, 0.0, 0.5))
    nearest = _by_nearness(earlier, thresholds, el, ma)
    exact = {*watched, *_first(earlier, nearest, most // 2)} & set(earlier.requests)
    indices = earlier.indices(sorted(exact))
    sequences, of_sequences = [earlier.sequences[i] for i in indices], [thresholds[i] for i in indices]
    values = extraction_likelihoods(model, sequences, of_sequences, options, partial_progress(progress, 0.5, 0.5))
    measured = dict(zip(indices, values, strict=True))
    return [measured.get(i, bound) for i, bound in enumerate(el)], ma, len(exact)


def _bounds_and_ma(
    model: CausalLM, forget: ForgetSet, thresholds: Sequence[Threshold], progress: Progress
) -> tuple[list[float], list[float]]:
    """A lower bound of EL, and MA, of each sequence: forward passes alone."""
    matches: list[list[bool]] = []
    for part in chunks(forget.sequences, AT_ONCE):
        matches += token_matches(model, part)
        progress(len(matches) / len(forget.sequences))
    bounds = [lower_bound(row, threshold.n) for row, threshold in zip(matches, thresholds, strict=True)]
    return bounds, [accuracy(row) for row in matches]


def _by_nearness(
    forget: ForgetSet, thresholds: Sequence[Threshold], el: Sequence[float], ma: Sequence[float]
) -> list[int]:
    """The requests, the one first that is most over a limit, or the least under all of its limits."""
    over: dict[int, float] = {}
    for request, limit, own_el, own_ma in zip(forget.request_ids, thresholds, el, ma, strict=True):
        over[request] = max(over.get(request, -1.0), own_el - limit.el_p95, own_ma - limit.ma_p95)
    return sorted(over, key=lambda request: -over[request])


def _first(forget: ForgetSet, requests: Sequence[int], most: int) -> list[int]:
    """The first of these requests that have so many sequences together; one at least."""
    counts, chosen, total = forget.per_request_count(), list[int](), 0
    for request in requests:
        total += counts[request]
        if chosen and total > most:
            break
        chosen.append(request)
    return chosen
