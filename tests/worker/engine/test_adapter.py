"""The adapter: nothing moves at the start, and its state goes back in."""

import pytest
import torch

from tests import support
from tests.worker.engine.adapters import RANK, SCALE, sequences, trained_adapter
from worker.engine import Options, row_importance
from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.errors import UnknownPlugin
from worker.engine.inits import INITS
from worker.engine.merge import delta, shrunk
from worker.engine.unlearn import merged_copy


@pytest.mark.parametrize("init", INITS)
def test_logits_do_not_move_at_initialisation(family, init):
    """Max abs difference <= 1e-5 in float32, for every family and every initialisation."""
    model = support.random_model(family, gain=1.0)
    input_ids = torch.tensor(sequences(2))
    names = find_targets(model)
    importance = row_importance(model, sequences(2), sequences(3, seed=1), names)
    factors = {n: INITS[init].factors(w, importance[n], RANK, SCALE) for n, w in target_weights(model, names).items()}
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        adapter = Adapter(model, factors, SCALE)
        assert (model(input_ids=input_ids).logits - before).abs().max() <= 1e-5
        assert all(p.requires_grad for p in adapter.parameters())
        adapter.detach()
        assert torch.equal(model(input_ids=input_ids).logits, before)


def test_state_goes_back_in():
    """Loading a state gives the logits it was taken at."""
    model = support.random_model("llama", gain=1.0)
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    with torch.no_grad():
        expected, state = model(input_ids=input_ids).logits, adapter.state()
        for parameter in adapter.parameters():
            parameter.zero_()
        adapter.load(state)
        torch.testing.assert_close(model(input_ids=input_ids).logits, expected)


def test_a_share_of_the_change():
    """`shrunk` and `set_strength` say the same: W + share x c (BA - B0 A0), the factors themselves as they were."""
    model = support.random_model("llama", gain=1.0)
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    state = adapter.state()
    with torch.no_grad():
        adapter.set_strength(0.25)
        expected = model(input_ids=input_ids).logits
        assert all(torch.equal(value, state[name]) for name, value in adapter.state().items())
        merged = merged_copy(adapter.detach(), shrunk(state, 0.25), Options(rank=RANK))
        torch.testing.assert_close(merged(input_ids=input_ids).logits, expected, atol=1e-5, rtol=1e-4)
    for name in adapter.names:
        torch.testing.assert_close(delta(shrunk(state, 0.25), name, SCALE), 0.25 * delta(state, name, SCALE))


def test_unknown_target_module_is_refused():
    """A policy that names no module of the model gets an error that names the field."""
    with pytest.raises(UnknownPlugin, match="target_modules"):
        find_targets(support.random_model("gpt2"), ["nope"])
