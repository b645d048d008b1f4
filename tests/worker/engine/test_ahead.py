"""Looking ahead: what moves, and that everything is as before afterwards."""

import pytest
import torch

from tests import support
from worker.engine import ahead as ahead_module
from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.ahead import ahead
from worker.engine.data import encode
from worker.engine.inits.standard import standard_factors
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import add_gradients


@pytest.fixture
def adapted(memorised):
    """A model, its adapter, and what adds the gradients of a step."""
    model, tokenizer = memorised
    weights = target_weights(model, find_targets(model))
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    adapter = Adapter(model, {name: standard_factors(weight, None, 2, 2.0) for name, weight in weights.items()}, 2.0)
    batch = [encode(tokenizer, text) for text in support.KNOWN[:2]]
    yield model, adapter.parameters(), lambda: add_gradients(model, batch, cross_entropy_rows)
    adapter.detach()
    for parameter, value in wanted.items():
        parameter.requires_grad_(value)
        parameter.grad = None


@pytest.mark.parametrize("whole", [True, False])
def test_a_small_model_moves_as_a_whole_and_a_large_one_by_its_adapter(adapted, monkeypatch, whole):
    """Afterwards each weight has its bytes. The adapter alone has gradients: those of before, and those made there."""
    model, trained, add = adapted
    own = sum(value.numel() for name, value in model.named_parameters() if "lora_" not in name)
    monkeypatch.setattr(ahead_module, "LARGEST_WHOLE", own if whole else own - 1)  # the adapter does not count
    everything = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in everything.items()}
    add()
    first = [parameter.grad.clone() for parameter in trained]
    with ahead(model, trained, 3, add):
        moved = {name for name, value in everything.items() if not torch.equal(value, before[name])}
        assert all(value.grad is None for value in everything.values())
        add()
        there = [parameter.grad.clone() for parameter in trained]
    assert any("lora_B.trained" in name for name in moved)
    assert any("embed" in name for name in moved) is whole
    assert whole or all("trained" in name for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in everything.items())
    assert [value for value in everything.values() if value.requires_grad] == trained
    assert [value for value in everything.values() if value.grad is not None] == trained
    for parameter, start, made in zip(trained, first, there, strict=True):
        torch.testing.assert_close(parameter.grad, start + made)


def test_a_look_ahead_that_fails_leaves_everything_as_it_was(adapted):
    """Weights, gradients, and what is trained."""
    model, trained, add = adapted
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), ahead(model, trained, 1, add):
        _ = 1 / 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert [value for value in model.parameters() if value.requires_grad] == trained
    assert not any(value.grad.any() for value in trained)


def test_narrow_weights_stay(adapted):
    """They would lose small steps; in float16 the optimiser divides by nothing."""
    model, trained, _ = adapted
    norm = model.gpt_neox.final_layer_norm
    before = norm.weight.data
    norm.weight.data = before.half()
    try:
        with ahead(model, trained, 0, lambda: None):
            assert [value for value in model.parameters() if value.requires_grad] == trained
        assert ahead_module._frozen(model) == []
    finally:
        norm.weight.data = before
    assert ahead_module._frozen(model)
