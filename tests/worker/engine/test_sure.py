"""What the parent is sure of in its samples: where the model would say something else, it is restored."""

import copy
import math
import random

import pytest
import torch

from tests import support
from worker.engine.data import encode
from worker.engine.sure import FULL, LOOKED_AT, RESTORED, SURE, WEIGHT, Sure, restore


def probabilities(model, ids) -> torch.Tensor:
    """Of each next token: [T-1, v]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].softmax(-1)


@pytest.fixture
def parent_and_samples(memorised):
    """A model, one that was shaken, and samples that the first knows by heart."""
    model, tokenizer = memorised
    shaken, noise = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in shaken.parameters():
            weight.add_(0.7 * weight.std() * torch.randn(weight.shape, generator=noise))
    return model, shaken, [encode(tokenizer, text) for text in support.KNOWN[:6]]


def test_what_is_lost_is_what_the_parent_is_sure_of_and_the_model_would_say_otherwise(parent_and_samples):
    """A token nine times as likely as any other; of the parent itself nothing is lost."""
    parent, shaken, samples = parent_and_samples
    sure = Sure.of_parent(parent, samples)
    assert sure.lost(parent, random.Random(0)) == []
    literal = {}
    for ids in samples:
        before, after = probabilities(parent, ids), probabilities(shaken, ids)
        for row, token in enumerate(ids[1:]):
            others = torch.cat([before[row, :token], before[row, token + 1 :]])
            if before[row, token] >= 9 * others.max() and after[row].argmax() != token:
                literal.setdefault(tuple(ids), []).append(row)
    assert literal
    assert {tuple(ids): rows for ids, rows in sure.lost(shaken, random.Random(0))} == literal
    assert math.exp(SURE) == pytest.approx(9)


def test_some_of_many_samples_are_looked_at(parent_and_samples):
    """Other ones each time, so that no step takes longer where there are more."""
    _, shaken, samples = parent_and_samples
    many = [ids[: 8 + i % 5] for i in range(100) for ids in samples[:1]]
    sure = Sure(many, [torch.ones(len(ids) - 1, dtype=torch.bool) for ids in many])
    first, second = (sure.lost(shaken, random.Random(seed)) for seed in (0, 1))
    assert 0 < len(first) <= LOOKED_AT
    assert first != second
    assert Sure().lost(shaken, random.Random(0)) == []


@pytest.mark.parametrize("rows", [[3], list(range(20))])
def test_what_is_restored_is_these_rows_alone(parent_and_samples, rows):
    """The gradient is that of their mean cross-entropy; of few rows it has less weight."""
    _, shaken, samples = parent_and_samples
    model = copy.deepcopy(shaken).requires_grad_(True)
    ids = samples[0]
    value = restore(model, [(ids, rows)], random.Random(0), 6.0)
    trained = [weight for weight in model.parameters() if weight.grad is not None]  # not the head's own
    gradients = [weight.grad.clone() for weight in trained]
    model.zero_grad()
    log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
    mean = -torch.stack([log_p[row, ids[row + 1]] for row in rows]).mean()
    literal = 6 * WEIGHT * min(1, len(rows) / FULL) * mean
    literal.backward()
    assert value == pytest.approx(float(literal.detach()), rel=1e-4)
    for gradient, weight in zip(gradients, trained, strict=True):
        torch.testing.assert_close(gradient, weight.grad, atol=1e-6, rtol=1e-3)


def test_few_samples_are_restored_in_a_step(parent_and_samples, monkeypatch):
    """And where nothing is lost, nothing is trained on."""
    _, shaken, samples = parent_and_samples
    drawn = []
    monkeypatch.setattr(
        "worker.engine.sure.add_gradients", lambda model, ids, *rest, **others: drawn.append(ids) or 1.0
    )
    assert restore(shaken, [(samples[0], [1])] * 20, random.Random(0), 6.0) == 1.0
    assert restore(shaken, [], random.Random(0), 6.0) == 0.0
    assert [len(ids) for ids in drawn] == [RESTORED]
