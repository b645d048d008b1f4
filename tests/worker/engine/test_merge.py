"""The merge: the base never moves, and W' = W + c (BA - B0 A0)."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import support
from tests.worker.engine.adapters import RANK, SCALE, sequences, trained_adapter
from worker.engine import Options
from worker.engine.adapter import target_weights
from worker.engine.merge import change_factors, delta, merge_into
from worker.engine.unlearn import merged_copy


def test_merge_through_disk_equals_base_plus_adapter(family, tmp_path):
    """Merged, saved and loaded again, the model says what base and adapter said; the base's file is untouched."""
    model = support.random_model(family, gain=1.0)
    model.save_pretrained(tmp_path / "base")
    before = hashlib.sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        state = adapter.state()
        base = adapter.detach()
        plain = base(input_ids=input_ids).logits
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merge_into(fresh, state, SCALE)
    fresh.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        actual = loaded(input_ids=input_ids).logits
    assert (actual - expected).abs().max() < 1e-5
    assert (actual - plain).abs().max() > 1e-3
    assert hashlib.sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest() == before
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())


def test_merge_is_w_plus_delta_and_happens_once():
    """Each target's weight is W + c (BA - B0 A0); a second merge into the same model is refused."""
    model = support.random_model("gpt2", gain=1.0)
    adapter = trained_adapter(model)
    state = adapter.state()
    base = adapter.detach()
    merged = merged_copy(base, state, Options(rank=RANK))
    for name in adapter.names:
        difference = target_weights(merged, [name])[name] - target_weights(base, [name])[name]
        torch.testing.assert_close(difference, delta(state, name, SCALE), atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="merged already"):
        merge_into(merged, state, SCALE)


def test_tied_embeddings_stay_tied(tmp_path):
    """GPT-2's head is its embedding, after the merge and after the disk."""
    model = support.random_model("gpt2", gain=1.0)
    adapter = trained_adapter(model)
    state = adapter.state()
    merged = merged_copy(adapter.detach(), state, Options(rank=RANK))
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_the_change_is_a_plain_lora_of_twice_the_rank(family):
    """B A of the factors is c (B A - B0 A0)."""
    state = trained_adapter(support.random_model(family, gain=1.0)).state()
    for name, (left, right) in change_factors(state, SCALE).items():
        assert left.shape[1] == right.shape[0] == 2 * RANK
        torch.testing.assert_close(left @ right, delta(state, name, SCALE), atol=1e-5, rtol=1e-4)
