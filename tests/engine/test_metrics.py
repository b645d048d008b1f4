"""EL and MA against a slow, literal reading of METHOD, on every family."""

import copy

import pytest
import torch

from tests import support
from worker.engine import extraction_likelihood, memorization_accuracy
from worker.engine.device import measuring
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.metrics.extraction import fitting_n, likelihood, lower_bound
from worker.engine.metrics.perplexity import perplexity


def next_token(model, ids: list[int]) -> int:
    """Greedy, one forward pass over the whole prefix, head and argmax in float32, ties to the lowest id."""
    with measuring(model):
        return int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().argmax())


def literal_ma(model, ids: list[int]) -> float:
    """MA, one prefix at a time."""
    return sum(next_token(model, ids[:t]) == ids[t] for t in range(1, len(ids))) / (len(ids) - 1)


def literal_el(model, ids: list[int], n: int, eos: int | None) -> float:
    """EL_n, one prefix and one token at a time."""
    total = 0.0
    for t in range(1, len(ids) - n + 1):
        generated: list[int] = []
        while len(generated) < len(ids) - t:
            token = next_token(model, ids[:t] + generated)
            if token == eos:
                break
            generated.append(token)
        label = [tuple(ids[i : i + n]) for i in range(t, len(ids) - n + 1)]
        found = [tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)]
        total += sum(gram in label for gram in found) / len(label)
    return total / (len(ids) - n)


@pytest.mark.parametrize("eos", [None, "some token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_el_equals_the_literal_reference(family, eos, dtype):
    """Chain sharing, shared prefill and leaving rows change no value, with and without EOS."""
    model = support.random_model(family).to(dtype)
    input_ids = support.partly_predictable(model, 3, 32)
    eos_token_id = None if eos is None else int(input_ids[0, 7])
    for n in (2, 4):
        fast = extraction_likelihood(model, input_ids, n=n, eos_token_id=eos_token_id, row_budget=13)
        slow = [literal_el(model, row, n, eos_token_id) for row in input_ids.tolist()]
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
    found = greedy_continuations(model, rows.tolist())
    bounds = [lower_bound(g.matches, 3) for g in found]
    assert all(b <= likelihood(g.input_ids, g.continuations, 3) + 1e-12 for b, g in zip(bounds, found, strict=True))
    assert max(bounds) > 0
    assert lower_bound([True] * 31, 10) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ma_equals_the_literal_reference(family, dtype):
    """One forward pass gives what T-1 calls give."""
    model = support.random_model(family).to(dtype)
    input_ids = support.partly_predictable(model, 3, 24)
    fast = memorization_accuracy(model, input_ids)
    assert fast.dtype == torch.float64
    assert fast.tolist() == pytest.approx([literal_ma(model, row) for row in input_ids.tolist()], abs=1e-12)
    assert 0.5 < fast.mean() < 1


def test_bfloat16_weights_are_measured_in_float32():
    """As if the weights had been float32 all along; afterwards they are what they were, tied ones still tied."""
    model = support.random_model("gemma3").to(torch.bfloat16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    input_ids = torch.randint(2, support.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    expected = memorization_accuracy(copy.deepcopy(model).float(), input_ids)
    assert memorization_accuracy(model, input_ids).tolist() == expected.tolist()
    assert model.state_dict().keys() == before.keys()
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_different_lengths_in_one_batch():
    """Sequences of several lengths together give what each gives alone."""
    model = support.random_model("gpt_neox")
    rows = [support.partly_predictable(model, 1, length, seed=length)[0].tolist() for length in (5, 17, 30)]
    together = greedy_continuations(model, rows, row_budget=7)
    for row, greedy in zip(rows, together, strict=True):
        alone = greedy_continuations(model, [row])[0]
        assert greedy.continuations == alone.continuations
        assert [len(c) for c in greedy.continuations] == list(range(len(row) - 1, 0, -1))


def test_many_sequences_are_decoded_as_one_batch(family):
    """Several prefilled sequences of several lengths share a batch, and each gives what it gives alone."""
    model = support.random_model(family)
    rows = [support.partly_predictable(model, 1, length, seed=length)[0].tolist() for length in (11, 26, 19, 26)]
    together = greedy_continuations(model, rows, row_budget=256)
    for row, greedy in zip(rows, together, strict=True):
        assert greedy.continuations == greedy_continuations(model, [row], row_budget=3)[0].continuations


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "opt"])
def test_sequences_as_long_as_the_model_reaches(name):
    """T = max_position_embeddings: finished rows that linger never ask for a position beyond."""
    model = support.random_model(name)
    reach = model.config.max_position_embeddings
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(2, support.VOCABULARY, (2, reach), generator=generator).tolist()
    whole = greedy_continuations(model, rows, eos_token_id=5)
    assert all(len(g.continuations) == reach - 1 for g in whole)


def test_several_end_tokens():
    """Models may have more than one; generation stops at any."""
    model = support.random_model("llama")
    row = support.partly_predictable(model, 1, 24)
    ends = {int(row[0, 5]), int(row[0, 11])}
    (greedy,) = greedy_continuations(model, row.tolist(), eos_token_id=ends)
    assert not any(ends & set(c) for c in greedy.continuations)


def test_one_generation_serves_every_length():
    """EL of x cut to T tokens needs only the continuations of the whole x."""
    model = support.random_model("gpt_neox")
    row = support.partly_predictable(model, 1, 30)[0]
    whole = greedy_continuations(model, [row.tolist()])[0]
    for length in (8, 15, 30):
        cut = extraction_likelihood(model, row[None, :length], n=3).item()
        assert likelihood(row[:length].tolist(), whole.continuations, 3) == pytest.approx(cut, abs=1e-12)


def test_progress_reaches_one_and_never_falls():
    """Whoever watches sees it move forward to the end."""
    model, fractions = support.random_model("gpt2"), []
    greedy_continuations(
        model, support.partly_predictable(model, 4, 20).tolist(), row_budget=5, progress=fractions.append
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_el_by_hand():
    """x = a b c d, n = 1: from a, "b x d" hits 2 of 3; from ab, "c d" hits 2 of 2; from abc, "x" hits 0 of 1."""
    assert likelihood([1, 2, 3, 4], [[2, 9, 4], [3, 4], [9]], 1) == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize(("length", "n"), [(2, 1), (5, 2), (12, 5), (20, 9), (21, 10), (200, 10)])
def test_short_sequences_get_an_n_that_fits(length, n):
    """12 tokens, a name and a phone number, are verified with n = 5."""
    assert fitting_n(length, 10) == n
    assert length - n >= 1


def test_perplexity_of_uniform_logits_is_the_vocabulary():
    """A model that knows nothing has the vocabulary's size as its perplexity, whatever the batch."""
    model = support.random_model("llama", gain=0.0)
    rows = [[2, 3, 4], list(range(2, 40)), [5, 6]]
    assert perplexity(model, rows) == pytest.approx(support.VOCABULARY, rel=1e-5)
