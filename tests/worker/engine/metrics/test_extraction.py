"""Extraction likelihood against the literal reading, on every family."""

import pytest
import torch

from tests import support
from tests.worker.engine.metrics.literal import literal_continuations, literal_el, next_tokens
from worker.engine import extraction_likelihood
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.metrics.extraction import fitting_n, likelihood, lower_bound


def test_the_literal_reference_continues_each_prefix_as_if_it_were_alone(family):
    """Sharing a forward pass changes no token of the reference, with and without EOS."""
    model = support.random_model(family)
    ids = support.partly_predictable(model, 1, 10)[0].tolist()
    for eos in (None, ids[7]):
        alone = []
        for t in range(1, len(ids)):
            generated: list[int] = []
            while len(generated) < len(ids) - t:
                (token,) = next_tokens(model, [ids[:t] + generated])
                if token == eos:
                    break
                generated.append(token)
            alone.append(generated)
        assert literal_continuations(model, [ids, ids[::-1]], eos)[0] == alone


@pytest.mark.parametrize("eos", [None, "some token"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_el_equals_the_literal_reference(family, eos, dtype):
    """Chain sharing, shared prefill and leaving rows change no value, with and without EOS."""
    model = support.random_model(family).to(dtype)
    input_ids = support.partly_predictable(model, 3, 32)
    eos_token_id = None if eos is None else int(input_ids[0, 7])
    sequences = input_ids.tolist()
    literal = literal_continuations(model, sequences, eos_token_id)
    for n in (2, 4):
        fast = extraction_likelihood(model, input_ids, n=n, eos_token_id=eos_token_id, row_budget=13)
        slow = [literal_el(ids, continuations, n) for ids, continuations in zip(sequences, literal, strict=True)]
        assert fast.dtype == torch.float64
        assert fast.tolist() == pytest.approx(slow, abs=1e-9)
    if eos is None:
        assert max(slow) > 0


@pytest.mark.parametrize("n", [3, 10])
def test_tokens_that_cannot_complete_an_n_gram_are_left_out(family, n):
    """EL_n is the same at every length it is asked for, and fewer tokens were generated."""
    model = support.random_model(family)
    ids = support.partly_predictable(model, 1, 40)[0].tolist()
    (whole,), (short,) = greedy_continuations(model, [ids]), greedy_continuations(model, [ids], n=n)
    for length in (2 * n + 1, 30, 39, 40):
        assert likelihood(ids[:length], short.continuations, n) == likelihood(ids[:length], whole.continuations, n)
    for a, b in zip(short.continuations, whole.continuations, strict=True):
        assert a == b[: len(a)]
        assert len(b) - len(a) < n
    if n == 10:  # a random model repeats itself, and so do its trigrams
        assert sum(map(len, short.continuations)) < sum(map(len, whole.continuations))


def test_the_lower_bound_is_one(family):
    """What the teacher-forced pass says of EL is never more than EL, and something where runs are long."""
    model = support.random_model(family)
    rows = support.partly_predictable(model, 3, 32)
    decoded = [*greedy_continuations(model, rows.tolist())]
    bounds = [lower_bound(g.matches, 3) for g in decoded]
    assert all(b <= likelihood(g.input_ids, g.continuations, 3) + 1e-12 for b, g in zip(bounds, decoded, strict=True))
    assert max(bounds) > 0
    assert lower_bound([True] * 31, 10) == 1.0


def test_one_generation_serves_every_length():
    """EL of x cut to T tokens needs only the continuations of the whole x."""
    model = support.random_model("gpt_neox")
    row = support.partly_predictable(model, 1, 30)[0]
    (whole,) = greedy_continuations(model, [row.tolist()])
    for length in (8, 15, 30):
        cut = extraction_likelihood(model, row[None, :length], n=3).item()
        assert likelihood(row[:length].tolist(), whole.continuations, 3) == pytest.approx(cut, abs=1e-12)


def test_el_by_hand():
    """x = a b c d, n = 1: from a, "b x d" hits 2 of 3; from ab, "c d" hits 2 of 2; from abc, "x" hits 0 of 1."""
    assert likelihood([1, 2, 3, 4], [[2, 9, 4], [3, 4], [9]], 1) == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize(("length", "n"), [(2, 1), (5, 2), (12, 5), (20, 9), (21, 10), (200, 10)])
def test_short_sequences_get_an_n_that_fits(length, n):
    """12 tokens, a name and a phone number, are verified with n = 5."""
    assert fitting_n(length, 10) == n
    assert length - n >= 1
