"""Fisher information by rows."""

import pytest
import torch

from tests import support
from tests.worker.engine.adapters import sequences
from worker.engine import row_importance
from worker.engine.adapter import find_targets, target_weights
from worker.engine.fisher import fisher_diagonal, module_groups


def test_fisher_equals_one_backward_a_sequence(family):
    """Batches of activations and output gradients give what a pass for each sequence gives."""
    model = support.random_model(family, gain=1.0)
    names = find_targets(model)
    rows = [*sequences(3), *sequences(2, length=7, seed=4)]
    fast = fisher_diagonal(model, rows, names, batch_size=2)
    slow = {name: torch.zeros_like(w) for name, w in target_weights(model, names).items()}
    for row in rows:
        model.zero_grad()
        input_ids = torch.tensor([row])
        log_p = torch.log_softmax(model(input_ids=input_ids).logits[:, :-1], -1)
        (-log_p.gather(-1, input_ids[:, 1:, None]).sum()).backward()
        for name in names:
            grad = model.get_submodule(name).weight.grad
            slow[name] += (grad if grad.shape == slow[name].shape else grad.T) ** 2 / len(rows)
    for name in names:
        torch.testing.assert_close(fast[name], slow[name], atol=1e-7, rtol=1e-3)
    assert all(p.requires_grad for p in model.parameters())


def test_modules_in_groups_give_the_same_importance(family):
    """Little memory means more passes, one module each, and the same numbers."""
    model = support.random_model(family, gain=1.0)
    names = find_targets(model)
    fractions: list[float] = []
    whole = row_importance(model, sequences(3), sequences(2, seed=1), names)
    parts = row_importance(model, sequences(3), sequences(2, seed=1), names, memory_bytes=1, progress=fractions.append)
    for name in names:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-5)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)


def test_groups_stay_within_their_memory():
    """A 7B shape, scaled down: what one group's sums take is never over the bound, unless by a single module."""
    model = support.random_model("llama")
    names = find_targets(model)
    sizes = {name: 8 * w.numel() for name, w in target_weights(model, names).items()}
    for bound in (1, max(sizes.values()), 2 * max(sizes.values()), sum(sizes.values())):
        groups = module_groups(model, names, bound)
        assert [name for group in groups for name in group] == names
        assert all(len(group) == 1 or sum(sizes[name] for name in group) <= bound for group in groups)
    assert len(groups) == 1


def test_row_importance_has_mean_one_and_finds_the_row():
    """float32 [d], mean 1; rows the retain set needs more weigh less."""
    model = support.random_model("llama", gain=1.0)
    names = find_targets(model)
    importance = row_importance(model, sequences(3), sequences(3, seed=9), names)
    assert set(importance) == set(names)
    for name, weights in importance.items():
        assert weights.shape == (model.get_submodule(name).weight.shape[0],)
        assert weights.dtype == torch.float32
        assert weights.mean().item() == pytest.approx(1.0, rel=1e-4)
    same = row_importance(model, sequences(3), sequences(3), names)
    assert all(same[n].std() < importance[n].std() for n in names)
