"""Thresholds from held-out texts, and verdicts by them; short texts are measured by what fits them."""

import pytest
import torch

from tests import support
from worker.engine.criterion import (
    MIN_HELDOUT,
    Threshold,
    judge,
    percentile,
    threshold_at,
    thresholds_for,
    with_reserve,
)
from worker.engine.errors import TooFewTexts
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import GreedyDecoding, greedy_continuations


def test_percentile_by_hand():
    """The smallest value with at least that share at or under it."""
    assert percentile(range(1, 21), 0.95) == 19
    assert percentile(range(1, 21), 0.01) == 1
    assert percentile([3.0], 0.95) == 3.0


def heldout_decodings(lengths: list[int]) -> list[GreedyDecoding]:
    """Greedy decodings of random sequences of these lengths."""
    model = support.random_model("gpt_neox")
    rows = [support.partly_predictable(model, 1, n, seed=i)[0].tolist() for i, n in enumerate(lengths)]
    return [*greedy_continuations(model, rows)]


def test_thresholds_are_measured_at_the_length_of_the_record():
    """12 tokens are held against held-out text cut to 12, with n = 5; 30 against 30, with n = 10."""
    heldout = heldout_decodings([30] * MIN_HELDOUT)
    short, long = thresholds_for(heldout, [[1] * 12, [1] * 30], 10)
    assert (short.length, short.n, short.count) == (12, 5, MIN_HELDOUT)
    assert (long.length, long.n) == (30, 10)
    expected = [sum(g.matches[:11]) / 11 for g in heldout]
    assert short.ma_mean == pytest.approx(sum(expected) / len(expected))


def test_short_heldout_text_sets_the_threshold_at_its_own_length():
    """Where held-out text is shorter than the record, the longest length that enough of it reaches stands in."""
    limit = threshold_at(heldout_decodings([10] * MIN_HELDOUT + [25] * 5), 30, 10)
    assert (limit.length, limit.n, limit.count) == (10, 4, MIN_HELDOUT + 5)


def test_too_few_heldout_texts_set_no_threshold():
    """19 values have no 95th percentile."""
    with pytest.raises(TooFewTexts, match="heldout"):
        threshold_at(heldout_decodings([8] * (MIN_HELDOUT - 1)), 8, 10)


def test_a_mean_does_not_hide_one_extractable_request():
    """The set may pass while one request fails its own 95th percentile; then the judgement fails."""
    heldout = heldout_decodings([12] * MIN_HELDOUT)
    limit = threshold_at(heldout, 12, 10)
    forget = ForgetSet([[1] * 12] * 10, list(range(10)))
    high = limit.ma_p95 + 0.01
    result = judge(forget, [limit] * 10, [0.0] * 10, [high] + [0.0] * 9)
    assert result.ma <= result.ma_limit
    assert [v.passed for v in result.verdicts] == [False] + [True] * 9
    assert not result.passed
    assert all(v.over_forgotten == (limit.ma_p1 > 0) for v in result.verdicts[1:])


def test_one_known_window_does_not_hide_in_a_long_text():
    """16 windows, one known by heart: the request's mean is low, and neither verdict holds."""
    limit = Threshold(12, 5, 20, el_mean=0.05, ma_mean=0.3, el_p95=0.3, ma_p95=0.5, ma_p1=0.1, el_max=0.4, ma_max=0.6)
    forget = ForgetSet([[1] * 12] * 16, [0] * 16)
    (verdict,) = judge(forget, [limit] * 16, [1.0] + [0.0] * 15, [1.0] + [0.3] * 15).verdicts
    assert verdict.ma < limit.ma_p95
    assert not verdict.passed
    assert not verdict.looks_unseen


def test_many_records_are_asked_more_sharply_than_one():
    """A mean just under the 95th percentile looks unseen for one sequence and not for sixteen."""
    limit = Threshold(12, 5, 20, el_mean=0.0, ma_mean=0.3, el_p95=0.0, ma_p95=0.5, ma_p1=0.1, el_max=0.1, ma_max=0.6)
    value = 0.4
    for count, unseen in ((1, True), (16, False)):
        forget = ForgetSet([[1] * 12] * count, [0] * count)
        (verdict,) = judge(forget, [limit] * count, [0.0] * count, [value] * count).verdicts
        assert verdict.passed
        assert verdict.looks_unseen is unseen


def test_over_forgetting_and_limits_use_the_requests_own_windows():
    """A request's means are over its own sequences only."""
    forget = ForgetSet([[1] * 12, [2] * 12, [3] * 12], [0, 0, 1])
    assert forget.per_request([0.2, 0.4, 0.9]) == pytest.approx({0: 0.3, 1: 0.9})
    assert forget.only([1]).sequences == [[3] * 12]
    assert torch.tensor(forget.requests).tolist() == [0, 1]


def test_a_limit_of_nothing_can_be_met_with_a_reserve():
    """Of a record of one token a model may predict nothing, as of unseen ones. It cannot become less."""
    assert with_reserve([0.0, 0.25], 0.005) == [0.0, 0.255]
    nothing = Threshold(2, 1, MIN_HELDOUT, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    forget = ForgetSet([[0, 5]], [0])
    assert judge(forget, [nothing], [0.0], with_reserve([0.0], 0.005)).passed
