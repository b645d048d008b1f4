"""A model is loaded in the dtype of its files, and computes what its float32 copy does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import support
from worker.engine.device import measuring, resolve_dtype, training
from worker.engine.widening import WideWeight
from worker.steps.loading import load_model, stored_dtype

CPU = torch.device("cpu")
INPUT_IDS = torch.randint(2, support.VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", support.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_model_computes_what_its_float32_copy_does(tmp_path, family, dtype):
    """Every weight keeps its memory meanwhile; what the family computes from its configuration is float32."""
    support.random_model(family, gain=1.0).to(dtype).save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == dtype
    model = load_model(tmp_path, dtype, CPU)
    copy = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    held = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with measuring(model), measuring(copy):
        assert {type(weight) for weight in model.parameters()} == {WideWeight}
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        logits, expected = (one(input_ids=INPUT_IDS, use_cache=False).logits for one in (model, copy))
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == held
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_a_frozen_narrow_model_trains_as_its_float32_copy_does(tmp_path):
    """The gradient of what comes into it; a weight that is trained stays narrow."""
    support.random_model("gemma3", gain=1.0).bfloat16().save_pretrained(tmp_path)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        model = load_model(tmp_path, dtype, CPU).requires_grad_(False)
        embedded = torch.randn(2, 12, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
        embedded.requires_grad_(True)
        with training(model, "float32"):
            model(inputs_embeds=embedded, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(embedded.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    trained = load_model(tmp_path, torch.bfloat16, CPU)
    with training(trained, "float32"):
        assert {weight.dtype for weight in trained.parameters()} == {torch.bfloat16}


def test_narrow_products_leave_the_rest_in_float32(tmp_path):
    """The hidden states between the layers are no narrower than with float32 weights."""
    support.random_model("llama", gain=1.0).bfloat16().save_pretrained(tmp_path)
    hidden = []
    for dtype in (torch.bfloat16, torch.float32):
        model = load_model(tmp_path, dtype, CPU).requires_grad_(False)
        with training(model, "bfloat16"):
            hidden.append(model(input_ids=INPUT_IDS, use_cache=False, output_hidden_states=True).hidden_states[1])
    assert hidden[0].dtype == hidden[1].dtype
    torch.testing.assert_close(hidden[0], hidden[1])


def test_files_of_several_dtypes_are_loaded_in_float32(tmp_path):
    """Nothing is rounded."""
    support.random_model("llama", gain=1.0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].bfloat16()}, file, {"format": "pt"})
    assert stored_dtype(tmp_path) == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_auto_is_the_dtype_of_the_files():
    """On a CPU; a policy may name another."""
    assert resolve_dtype("auto", CPU, torch.bfloat16) == torch.bfloat16
    assert resolve_dtype("auto", CPU, torch.float32) == torch.float32
    assert resolve_dtype("float32", CPU, torch.bfloat16) == torch.float32
