"""Texts of any length: no token is left out, short ones are measured by what fits them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import support
from worker.engine.criterion import MIN_HELDOUT, Threshold, judge, percentile, threshold_at, thresholds_for
from worker.engine.data import pad_batch, text_windows, windows, without_forget_text
from worker.engine.errors import TooFewTexts, TooShort
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.decode import GreedyDecoding, greedy_continuations
from worker.engine.prepare import RetainSampler


@given(st.integers(1, 200), st.integers(2, 40), st.booleans())
def test_every_token_is_a_label_somewhere(count, length, bos):
    """Windows hold at most L tokens, are whole except for a short text, and miss no token."""
    ids = list(range(count + bos))
    cut = windows(ids, length, bos=bos)
    predicted = {token for window in cut for token in window[1:]}
    assert predicted | {ids[0]} == set(ids)
    assert all(len(window) == min(length, len(ids)) for window in cut)
    if bos:
        assert all(window[0] == 0 for window in cut)


def test_windows_by_hand():
    """Without BOS windows share one token; the last one moves back to end with the text."""
    assert windows([0, 1, 2, 3, 4, 5], 4, bos=False) == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert windows([9, 1, 2, 3, 4, 5], 4, bos=True) == [[9, 1, 2, 3], [9, 3, 4, 5]]


def test_text_without_a_predicted_token_is_refused():
    """A tokenizer without BOS predicts nothing of a one-token text."""
    tokenizer = support.train_tokenizer(["abc abc"])
    tokenizer.bos_token = None
    with pytest.raises(TooShort):
        text_windows(tokenizer, "a", 8)


def test_padding_is_not_a_label():
    """Right padding: mask 0, label -100."""
    input_ids, mask, labels = pad_batch([[5, 6, 7], [8, 9]])
    assert input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[5, 6, 7], [8, 9, -100]]


def test_retain_text_with_a_forget_text_is_left_out():
    """Found whatever the case and the spacing; the count is told."""
    retain = ["something else", "before ANNA  Smith\nof Bath after", "Anna Jones"]
    assert without_forget_text(retain, ["Anna Smith of Bath"]) == (["something else", "Anna Jones"], 1)


def test_percentile_by_hand():
    """The smallest value with at least that share at or under it."""
    assert percentile(range(1, 21), 0.95) == 19
    assert percentile(range(1, 21), 0.01) == 1
    assert percentile([3.0], 0.95) == 3.0


def heldout_decodings(lengths: list[int]) -> list[GreedyDecoding]:
    """Greedy decodings of random sequences of these lengths."""
    model = support.random_model("gpt_neox")
    rows = [support.partly_predictable(model, 1, n, seed=i)[0].tolist() for i, n in enumerate(lengths)]
    return greedy_continuations(model, rows)


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


def test_whole_words_only():
    """A forget text "John" leaves "Johnson" in the retain set."""
    assert without_forget_text(["Johnson is here", "so is John."], ["John"]) == (["Johnson is here"], 1)


def test_many_records_are_asked_more_sharply_than_one():
    """A mean just under the 95th percentile looks unseen for one sequence and not for sixteen."""
    limit = Threshold(12, 5, 20, el_mean=0.0, ma_mean=0.3, el_p95=0.0, ma_p95=0.5, ma_p1=0.1, el_max=0.1, ma_max=0.6)
    value = 0.4
    for count, unseen in ((1, True), (16, False)):
        forget = ForgetSet([[1] * 12] * count, [0] * count)
        (verdict,) = judge(forget, [limit] * count, [0.0] * count, [value] * count).verdicts
        assert verdict.passed
        assert verdict.looks_unseen is unseen


def test_retain_sampling_depends_on_seed_and_epoch_alone():
    """A resumed run draws what the uninterrupted one drew."""
    tokenizer = support.train_tokenizer(support.RETAIN)
    first, second = (RetainSampler(tokenizer, support.RETAIN, 32, 3) for _ in range(2))
    first.start_epoch(1)
    first.sample(5)
    first.start_epoch(2)
    second.start_epoch(2)
    assert first.sample(9) == second.sample(9)
    assert all(len(ids) <= 32 for ids in second.sample(20))


def test_over_forgetting_and_limits_use_the_requests_own_windows():
    """A request's means are over its own sequences only."""
    forget = ForgetSet([[1] * 12, [2] * 12, [3] * 12], [0, 0, 1])
    assert forget.per_request([0.2, 0.4, 0.9]) == pytest.approx({0: 0.3, 1: 0.9})
    assert forget.only([1]).sequences == [[3] * 12]
    assert torch.tensor(forget.requests).tolist() == [0, 1]
