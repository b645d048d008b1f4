"""Greedy continuations: batches change nothing, and every end is respected."""

import pytest
import torch

from tests import support
from worker.engine.metrics.decode import greedy_continuations


def test_different_lengths_in_one_batch():
    """Sequences of several lengths together give what each gives alone."""
    model = support.random_model("gpt_neox")
    rows = [support.partly_predictable(model, 1, length, seed=length)[0].tolist() for length in (5, 17, 30)]
    together = greedy_continuations(model, rows, row_budget=7)
    for row, greedy in zip(rows, together, strict=True):
        (alone,) = greedy_continuations(model, [row])
        assert greedy.continuations == alone.continuations
        assert [len(c) for c in greedy.continuations] == list(range(len(row) - 1, 0, -1))


def test_many_sequences_are_decoded_as_one_batch(family):
    """Several prefilled sequences of several lengths share a batch, and each gives what it gives alone."""
    model = support.random_model(family)
    rows = [support.partly_predictable(model, 1, length, seed=length)[0].tolist() for length in (11, 26, 19, 26)]
    together = greedy_continuations(model, rows, row_budget=256)
    for row, greedy in zip(rows, together, strict=True):
        (alone,) = greedy_continuations(model, [row], row_budget=3)
        assert greedy.continuations == alone.continuations


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


def test_progress_reaches_one_and_never_falls():
    """Whoever watches sees it move forward to the end."""
    model, fractions = support.random_model("gpt2"), []
    rows = support.partly_predictable(model, 4, 20).tolist()
    *_, last = greedy_continuations(model, rows, row_budget=5, progress=fractions.append)
    assert last.input_ids == rows[-1]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_what_was_read_is_not_kept():
    """The continuations of a long text are many times as long as it: those of a group are there before the next one."""
    model, fractions = support.random_model("gpt2"), [0.0]
    rows = support.partly_predictable(model, 8, 20).tolist()
    decodings = greedy_continuations(model, rows, row_budget=5, progress=fractions.append)
    for count, decoding in enumerate(decodings):
        assert decoding.input_ids == rows[count]
        assert fractions[-1] <= (count // 4 + 1) / 2
    assert fractions[-1] == 1.0
    assert [*greedy_continuations(model, [], progress=fractions.append)] == []
