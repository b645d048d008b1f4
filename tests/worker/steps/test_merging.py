"""The merge on files, and the change as an adapter that peft loads."""

import json
import shutil

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from service.weight_files import header, loaded_weights
from tests import support
from tests.worker.engine.adapters import RANK, SCALE, trained_adapter
from worker.engine import Options
from worker.engine.adapter import find_targets, target_weights
from worker.engine.errors import UnmergedModule
from worker.engine.merge import delta, merge_into
from worker.steps.merging import check_names, merge_files, write_change


def merge(base, state):
    """The folders of the merged files and of the change."""
    merged, change = base.with_name("merged"), base.with_name("change")
    shutil.copytree(base, merged, ignore=shutil.ignore_patterns("*.safetensors"))
    change.mkdir()
    write_change(base, change, state, SCALE)
    merge_files(base, merged, change)
    return merged, change


@pytest.mark.parametrize("family", support.FAMILIES)
def test_merged_files_are_the_bases_with_other_values(family, tmp_path):
    """Files, tensors, dtypes and shapes stay; what loads from them is nearly what is merged in memory, in float32."""
    model = support.random_model(family, gain=1.0)
    model.save_pretrained(tmp_path / "base", max_shard_size="50KB")
    adapter = trained_adapter(model)
    state = adapter.state()
    merge_into(expected := adapter.detach(), state, SCALE)
    names = loaded_weights(tmp_path / "base")
    assert len(names) > 1
    merged, _ = merge(tmp_path / "base", state)
    for name in names:
        assert header(merged / name) == header(tmp_path / "base" / name)
    loaded = AutoModelForCausalLM.from_pretrained(merged)
    changed = {f"{name}.weight" for name in adapter.names}
    for name, value in expected.state_dict().items():
        tolerance = 1e-6 if name in changed else 0
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call
@pytest.mark.parametrize("family", support.FAMILIES)
def test_stock_peft_loads_the_change(family, tmp_path):
    """On the base it gives the logits of the merged model."""
    model = support.random_model(family, gain=1.0)
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(model)
    state = adapter.state()
    merged, change = merge(tmp_path / "base", state)
    served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), change).eval()
    input_ids = torch.arange(2, 26).reshape(2, 12)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(merged).eval()(input_ids=input_ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()(input_ids=input_ids).logits
        assert (served(input_ids=input_ids).logits - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-3
    assert served.peft_config["default"].r == 2 * RANK


def test_the_change_of_bfloat16_weights_is_bfloat16(tmp_path):
    """It costs half, and its rounding is relative to the change, not to the weights."""
    model = support.random_model("llama", gain=1.0)
    model.bfloat16().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    adapter = trained_adapter(base)
    state = adapter.state()
    merged, change = merge(tmp_path / "base", state)
    assert {value.dtype for value in load_file(change / "adapter_model.safetensors").values()} == {torch.bfloat16}
    loaded, plain = AutoModelForCausalLM.from_pretrained(merged, dtype="float32"), adapter.detach()
    for name in adapter.names:
        weight = target_weights(plain, [name])[name]
        expected = weight + delta(state, name, SCALE)
        error = (target_weights(loaded, [name])[name] - expected).abs()
        assert (error <= 2**-8 * expected.abs() + 0.02 * delta(state, name, SCALE).abs().max()).all()


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
    folder, _ = merge(tmp_path / "base", state)
    merged = load_file(folder / file.name)
    assert header(folder / file.name) == header(file)
    changed = {name for name, value in merged.items() if not torch.equal(value, tensors[name])}
    assert changed == {f"{name.removeprefix('transformer.')}.weight" for name in adapter.names}
    name = adapter.names[0].removeprefix("transformer.") + ".weight"
    expected = tensors[name].double() + delta(state, adapter.names[0], SCALE).T
    torch.testing.assert_close(merged[name].double(), expected, atol=1e-6, rtol=2**-11)


def test_a_module_that_the_files_lack_is_an_error(tmp_path):
    """Nothing is left out in silence."""
    model = support.random_model("llama", gain=1.0)
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({f"other.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UnmergedModule):
        merge(tmp_path / "base", trained_adapter(model).state())
    with pytest.raises(UnmergedModule):  # before anything is computed
        check_names(tmp_path / "base", None)


@pytest.mark.parametrize(("stored", "stated"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_keep_the_dtype_of_their_files_whatever_the_configuration_says(tmp_path, stored, stated):
    """And every tensor that is not adapted keeps its bytes."""
    model = support.random_model("llama", gain=1.0).to(getattr(torch, stored))
    model.save_pretrained(tmp_path / "base", max_shard_size="50KB")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": stated}))
    adapter = trained_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32"))
    merged, _ = merge(tmp_path / "base", adapter.state())
    changed = set()
    for name in loaded_weights(merged):
        before, after = load_file(tmp_path / "base" / name), load_file(merged / name)
        assert {value.dtype for value in after.values()} == {getattr(torch, stored)}
        changed |= {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.weight" for name in adapter.names}


def test_the_delta_of_a_large_model_is_a_hundredth_of_it():
    """Of the shape of Llama 3 70B in bfloat16, at the default rank."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = [weight.shape for weight in target_weights(model, find_targets(model)).values()]
    change = sum(2 * Options().rank * (d + k) * 2 for d, k in shapes)
    assert change < 0.01 * 2 * sum(parameter.numel() for parameter in model.parameters())


def test_the_change_is_a_gguf_adapter(tmp_path):
    """Every factor has a name in llama.cpp's form, and keeps its numbers. Its own script writes the same members."""
    model = support.random_model("qwen2", gain=1.0)  # a family whose weights llama.cpp keeps in order
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(model)
    state = adapter.state()
    _, change = merge(tmp_path / "base", state)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(tmp_path / "change.gguf", "qwen2")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    config = json.loads((change / "adapter_config.json").read_text())
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config["lora_alpha"])
    factors = load_file(change / "adapter_model.safetensors")
    for name, value in factors.items():
        module, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        writer.add_tensor(f"{names.get_name(module)}.weight.lora_{letter.lower()}", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "change.gguf").tensors}
    assert len(tensors) == len(factors) == 2 * len(adapter.names)
    for block, module in enumerate(name for name in adapter.names if name.endswith("down_proj")):
        product = tensors[f"blk.{block}.ffn_down.weight.lora_b"] @ tensors[f"blk.{block}.ffn_down.weight.lora_a"]
        expected = delta(state, module, SCALE)
        torch.testing.assert_close(torch.tensor(product), expected, atol=1e-5, rtol=1e-4)
