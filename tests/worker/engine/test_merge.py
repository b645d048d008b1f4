"""The merge: the base never moves, and W' = W + c (BA - B0 A0)."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from service.weight_files import header, loaded_weights
from tests import support
from tests.worker.engine.adapters import RANK, SCALE, sequences, trained_adapter
from worker.engine import Options
from worker.engine.adapter import target_weights
from worker.engine.errors import UnmergedModule
from worker.engine.merge import delta, merge_files, merge_into
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


def test_merged_files_are_the_bases_with_other_values(family, tmp_path):
    """Files, tensors, dtypes and shapes stay; the model that loads from them is the one that is merged in memory."""
    model = support.random_model(family, gain=1.0)
    model.save_pretrained(tmp_path / "base", max_shard_size="50KB")
    adapter = trained_adapter(model)
    state = adapter.state()
    merge_into(expected := adapter.detach(), state, SCALE)
    names = loaded_weights(tmp_path / "base")
    assert len(names) > 1
    (tmp_path / "merged").mkdir()
    merge_files(tmp_path / "base", tmp_path / "merged", names, state, SCALE)
    for name in names:
        assert header(tmp_path / "merged" / name) == header(tmp_path / "base" / name)
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / "merged" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.state_dict().items())


def test_files_of_a_base_model_in_another_precision_are_merged(tmp_path):
    """GPT-2's files are named without a head and may be float16 where the configuration says nothing."""
    model = support.random_model("gpt2", gain=1.0)
    model.transformer.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {name: value.half() for name, value in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)  # a mask, as old checkpoints have it
    save_file(tensors, file, {"format": "pt"})
    adapter = trained_adapter(model)
    state = adapter.state()
    (tmp_path / "merged").mkdir()
    merge_files(tmp_path / "base", tmp_path / "merged", [file.name], state, SCALE)
    merged = load_file(tmp_path / "merged" / file.name)
    assert header(tmp_path / "merged" / file.name) == header(file)
    changed = {name for name, value in merged.items() if not torch.equal(value, tensors[name])}
    assert changed == {f"{name.removeprefix('transformer.')}.weight" for name in adapter.names}
    name = adapter.names[0].removeprefix("transformer.") + ".weight"
    torch.testing.assert_close(
        merged[name], (tensors[name].float() + delta(state, adapter.names[0], SCALE).T).half(), atol=0, rtol=0
    )


def test_a_module_that_the_files_lack_is_an_error(tmp_path):
    """Nothing is left out in silence."""
    model = support.random_model("llama", gain=1.0)
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({f"other.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    state = trained_adapter(model).state()
    (tmp_path / "merged").mkdir()
    with pytest.raises(UnmergedModule):
        merge_files(tmp_path / "base", tmp_path / "merged", [file.name], state, SCALE)
