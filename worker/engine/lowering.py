"""Which tokens a model is to stop saying, so that texts that it does not know meet the criterion, too.

A model that never saw a set of texts is over the held-out mean of MA as often as under it, and one text in twenty is
over the 95th percentile. A model that is to pass must be right about a few tokens fewer. The least is lost where the
true token is the likeliest by the smallest margin: there another one takes its place, and all else stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.criterion import Threshold
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.extraction import lower_bound

Rows = set[tuple[int, int]]  # (sequence, row)
LAST = 1e3  # nats, far over any margin


def rows_to_lower(
    forget: ForgetSet,
    thresholds: Sequence[Threshold],
    margins: Sequence[Tensor],
    counted: Sequence[int],
    reserve: float,
) -> Rows:
    """The rows whose true token must stop being the likeliest, the smallest margins first.

    Args:
        forget: The sequences.
        thresholds: The threshold of each sequence.
        margins: For each sequence the margins [T-1] of its true tokens; the likeliest ones have a positive margin.
        counted: The requests that the set criterion is over.
        reserve: How far below its limit MA is to be.

    Returns:
        The sequence and the row of each.
    """
    margins = [margin.clone() for margin in margins]
    before = [margin > 0 for margin in margins]
    own = forget.indices(counted)
    el = sum(lower_bound(before[i].tolist(), thresholds[i].n) - thresholds[i].el_mean for i in own)
    for i, threshold in enumerate(thresholds):
        goal = threshold.el_mean if el > 0 and i in own else threshold.el_p95
        while lower_bound((margins[i] > 0).tolist(), threshold.n) > goal:
            _break_longest_run(margins[i])
        _lower(margins, [i], threshold.ma_max - reserve)
    of_requests = [forget.indices([request]) for request in forget.requests]
    groups = [(indices, [thresholds[i].ma_p95 for i in indices]) for indices in of_requests]
    for indices, limits in [*groups, (own, [thresholds[i].ma_mean for i in own])]:
        _lower(margins, indices, sum(limits) / max(len(limits), 1) - reserve)
    lowered = (was & (margin <= 0) for was, margin in zip(before, margins, strict=True))
    return {(i, int(row)) for i, rows in enumerate(lowered) for row in rows.nonzero().flatten()}


def with_numbers_last(margins: Sequence[Tensor], numbers: Sequence[Sequence[bool]]) -> list[Tensor]:
    """Raise the margins of numbers that the model predicts rightly, so that they are lowered last.

    A number that is less likely than random ones gives itself away as well.

    Args:
        margins: For each sequence the margins [T-1].
        numbers: For each sequence whether a number stands in the row [T-1].

    Returns:
        The margins, LAST higher where a number stands and the margin is positive.
    """
    return [margin + LAST * ((margin > 0) & torch.tensor(rows)) for margin, rows in zip(margins, numbers, strict=True)]


def _lower(margins: list[Tensor], indices: Sequence[int], limit: float) -> None:
    """Lower rows of some sequences, in place, until their mean MA is at the limit."""
    shares = [1 / (len(indices) * len(margins[i])) for i in indices]
    excess = sum(float((margins[i] > 0).sum()) * share for i, share in zip(indices, shares, strict=True)) - limit
    matched = sorted(
        (float(margins[i][row]), i, int(row), share)
        for i, share in zip(indices, shares, strict=True)
        for row in (margins[i] > 0).nonzero().flatten()
    )
    for _, i, row, share in matched:
        if excess <= 1e-9:
            return
        margins[i][row] = 0.0
        excess -= share


def _break_longest_run(margin: Tensor) -> None:
    """Lower a row in the longest run of right tokens, in place: long runs are what EL sees."""
    run = _longest_run((margin > 0).tolist())
    margin[run.start + int(margin[run].argmin())] = 0.0


def _longest_run(matches: Sequence[bool]) -> slice:
    """The longest stretch of true values."""
    best, start = slice(0, 0), 0
    for end in range(len(matches) + 1):
        if end == len(matches) or not matches[end]:
            best = slice(start, end) if end - start > best.stop - best.start else best
            start = end + 1
    return best
