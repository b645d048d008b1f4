"""What the parent is sure of in its samples: where the model would say something else, it is restored."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from tests import support
from tests.worker.engine.adapters import trained_adapter
from worker.engine import Options, unlearn
from worker.engine.data import encode
from worker.engine.sure import DRAWN, FULL_ROWS, RESTORED, WEIGHT, Sure, restore


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
    adapted = copy.deepcopy(parent)
    adapter = trained_adapter(adapted)
    sure = Sure.of_parent(adapted, adapter, samples)
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


def test_some_of_many_samples_are_looked_at(parent_and_samples):
    """Other ones each time, so that no step takes longer where there are more."""
    parent, _, samples = parent_and_samples
    many = [[*ids[:start], *ids] for ids in samples for start in range(1, 18)]
    with_wrong_token = [[*ids[:-1], (ids[-1] + 1) % support.VOCABULARY] for ids in many]
    sure = Sure(with_wrong_token, [torch.ones(len(ids) - 1, dtype=torch.bool) for ids in many])
    first, second = ({tuple(ids) for ids, _ in sure.lost(parent, random.Random(seed))} for seed in (0, 1))
    assert len(many) > len(first) == len(second) == DRAWN
    assert first != second
    assert Sure().lost(parent, random.Random(0)) == []


@pytest.mark.parametrize("rows", [[[3], [1, 2]], [list(range(20)), [4, 7]]])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_is_restored_is_these_rows_alone(parent_and_samples, rows, batch_size):
    """The gradient is that of their mean cross-entropy, however many are taken at once; few rows have less weight."""
    _, shaken, samples = parent_and_samples
    model = copy.deepcopy(shaken).requires_grad_(True)
    options = replace(Options(), divergence_weight=3.0, batch_size=batch_size, sequence_length=len(samples[0]))
    value = restore(model, list(zip(samples, rows, strict=False)), random.Random(0), options)
    trained = [weight for weight in model.parameters() if weight.grad is not None]  # not the head's own
    gradients = [weight.grad.clone() for weight in trained]
    model.zero_grad()
    losses = []
    for ids, own in zip(samples, rows, strict=False):
        log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        losses += [-log_p[row, ids[row + 1]] for row in own]
    literal = 3 * WEIGHT * min(1, len(losses) / FULL_ROWS) * torch.stack(losses).mean()
    literal.backward()
    assert value == pytest.approx(float(literal.detach()), rel=1e-4)
    for gradient, weight in zip(gradients, trained, strict=True):
        torch.testing.assert_close(gradient, weight.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("batch_size", "together"), [(8, [RESTORED]), (3, [3, 3, 2])])
def test_few_samples_are_restored_in_a_step(parent_and_samples, monkeypatch, batch_size, together):
    """No more at once than a batch has tokens. Where nothing is lost, nothing is trained on."""
    _, shaken, samples = parent_and_samples
    drawn = []
    monkeypatch.setattr(
        "worker.engine.sure.add_gradients", lambda model, ids, *rest, **others: drawn.append(ids) or 1.0
    )
    options = replace(Options(), batch_size=batch_size, sequence_length=len(samples[0]))
    restore(shaken, [(samples[0], [1])] * 20, random.Random(0), options)
    assert [len(ids) for ids in drawn] == together
    assert restore(shaken, [], random.Random(0), options) == 0.0


@pytest.mark.parametrize(("adaptive", "restores"), [(True, True), pytest.param(False, False, marks=pytest.mark.slow)])
def test_epochs_that_keep_restore_and_those_that_forget_do_not(memorised, monkeypatch, adaptive, restores):
    """Every epoch is over the budget here, so that the second one keeps; the paper's procedure restores nothing."""
    model, tokenizer = memorised
    seen = []
    monkeypatch.setattr(
        "worker.engine.train.restore", lambda model, lost, *rest: seen.append(len(lost)) or restore(model, lost, *rest)
    )
    policy = {"attacks": {}, "own_samples": 64, "max_perplexity_ratio": 0.1, "max_epochs": 3, "learning_rate": 1e-2}
    options = Options.from_mapping(support.POLICY | policy | {"reserve": 0.3, "adaptive": adaptive})
    history = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, options).history
    first, second, _ = (int(entry["steps"]) for entry in history)
    assert [bool(entry["keeps"]) for entry in history] == [False, restores, False]
    assert not any(seen[:first])
    assert any(seen[first:][:second]) is restores
    assert not any(seen[first + second :])
