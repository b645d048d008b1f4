"""Memorization accuracy against the literal reading, on every family."""

import copy

import pytest
import torch

from tests import support
from tests.worker.engine.metrics.literal import literal_ma
from worker.engine import memorization_accuracy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ma_equals_the_literal_reference(family, dtype):
    """One forward pass gives what T-1 calls give."""
    model = support.random_model(family).to(dtype)
    input_ids = support.partly_predictable(model, 3, 24)
    fast = memorization_accuracy(model, input_ids)
    assert fast.dtype == torch.float64
    assert fast.tolist() == pytest.approx(literal_ma(model, input_ids.tolist()), abs=1e-12)
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
