"""Which tokens a model is to stop saying, so that texts that it does not know meet the criterion, too.

A model that never saw a set of texts is over the held-out mean of MA as often as under it, and one text in twenty is
over the 95th percentile. A model that is to pass must be right about a few tokens fewer. The least is lost where the
true token is the likeliest by the smallest margin: there another one takes its place, and all else stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from worker.engine.criterion import Judgement, Threshold
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import GreedyDecoding
from worker.engine.metrics.extraction import extracted_chains, lower_bound
from worker.engine.metrics.token_scores import token_margins
from worker.engine.probes import Answer
from worker.engine.types import CausalLM

Rows = set[tuple[int, int]]  # (sequence, row)
FAILED_SHARE = 0.03  # of the rows of a sequence that failed a full test


@dataclass(frozen=True, slots=True)
class Pressed:
    """What is over a limit after the fixed steps.

    Attributes:
        sequences: Indices of sequences to forget.
        answers: Indices of answers that the model still gives.
        extracted: What greedy decoding extracts, as `extracted` has it.
    """

    sequences: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    extracted: list[Answer] = field(default_factory=list)


def rows_to_lower(
    forget: ForgetSet,
    thresholds: Sequence[Threshold],
    margins: Sequence[Tensor],
    counted: Sequence[int],
    reserve: float,
    failed: Sequence[int] = (),
) -> Rows:
    """The rows whose true token must stop being the likeliest, the smallest margins first.

    Args:
        forget: The sequences.
        thresholds: The threshold of each sequence.
        margins: For each sequence the margins [T-1] of its true tokens; the likeliest ones have a positive margin.
        counted: The requests that the set criterion is over.
        reserve: How far below its limit MA is to be.
        failed: Requests that failed a full test, although these margins had passed.

    Returns:
        The sequence and the row of each.
    """
    margins = [margin.clone() for margin in margins]
    before = [margin > 0 for margin in margins]
    own = forget.indices(counted)
    el = sum(lower_bound(before[i].tolist(), thresholds[i].n) - thresholds[i].el_mean for i in own)
    for i, threshold in enumerate(thresholds):
        goal = threshold.el_mean if el > 0 and i in own else threshold.el_p95
        if forget.request_ids[i] in failed:
            _break_longest_runs(margins[i], math.ceil(FAILED_SHARE * len(margins[i])))
        while lower_bound((margins[i] > 0).tolist(), threshold.n) > goal:
            _break_longest_runs(margins[i], 1)
        _lower(margins, [i], threshold.ma_max - reserve)
    of_requests = [forget.indices([request]) for request in forget.requests]
    groups = [(indices, [thresholds[i].ma_p95 for i in indices]) for indices in of_requests]
    for indices, limits in [*groups, (own, [thresholds[i].ma_mean for i in own])]:
        _lower(margins, indices, sum(limits) / max(len(limits), 1) - reserve)
    lowered = (was & (margin <= 0) for was, margin in zip(before, margins, strict=True))
    return {(i, int(row)) for i, rows in enumerate(lowered) for row in rows.nonzero().flatten()}


def extracted(model: CausalLM, decodings: Sequence[GreedyDecoding], thresholds: Sequence[Threshold]) -> list[Answer]:
    """Where greedy decoding says an n-gram of the true continuation: the one token of it that is the easiest to change.

    Args:
        model: The model.
        decodings: Greedy decodings of sequences to forget.
        thresholds: The threshold of each of them, with the n.

    Returns:
        For each prefix that extracts one the tokens up to that token of its first n-gram, each once.
    """
    chains: dict[tuple[int, ...], int] = {}
    for decoding, threshold in zip(decodings, thresholds, strict=True):
        chains |= dict.fromkeys(map(tuple, extracted_chains(decoding, threshold.n)), threshold.n)
    easiest = []
    margins = token_margins(model, [list(chain) for chain in chains])
    for (chain, n), margin in zip(chains.items(), margins, strict=True):
        token = len(chain) - n + int(margin[-n:].argmin())
        easiest.append(Answer(list(chain[: token + 1]), token))
    return easiest


def failed_by_el(judgement: Judgement, counted: Sequence[int]) -> set[int]:
    """The requests whose verdict fails, and those of the highest EL until the mean of the others would pass."""
    failed = {v.request for v in judgement.verdicts if not v.passed}
    counted_requests = set(counted)
    own = sorted((v for v in judgement.verdicts if v.request in counted_requests), key=lambda v: v.el)
    while own and sum(v.el for v in own) > judgement.el_limit * len(counted_requests):
        failed.add(own.pop().request)
    return failed


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


def _break_longest_runs(margin: Tensor, times: int) -> None:
    """Lower a row in the longest run of right tokens, in place, so many times: long runs are what EL sees."""
    for _ in range(times):
        run = _longest_run((margin > 0).tolist())
        if run.start < run.stop:
            margin[run.start + int(margin[run].argmin())] = 0.0


def _longest_run(matches: Sequence[bool]) -> slice:
    """The longest stretch of true values."""
    best, start = slice(0, 0), 0
    for end in range(len(matches) + 1):
        if end == len(matches) or not matches[end]:
            best = slice(start, end) if end - start > best.stop - best.start else best
            start = end + 1
    return best
