"""A model's experts as linear modules of their own."""

import copy
import gc
import json
import weakref

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests import support
from tests.worker.engine.adapters import sequences, trained_adapter
from tests.worker.engine.families import COMMON, EXPERTS, tiny_model
from worker.engine import Options, reference, unlearn
from worker.engine.adapter import find_targets
from worker.engine.baseline import Baseline
from worker.engine.data import pad_batch
from worker.engine.errors import InputError, UnmergedModule
from worker.engine.experts import experts_apart, join_experts, separate_experts, separated
from worker.engine.fisher import fisher_diagonal
from worker.engine.losses.ascent import cross_entropy
from worker.engine.prepare import prepare
from worker.steps import places as steps_places
from worker.steps.loading import load_model
from worker.steps.merging import check_names, write_change
from worker.steps.places import Place, stored_places

FAMILIES = ["gpt_oss", "mixtral", "nemotron_h"]  # transposed with biases, gated, without gates


@pytest.fixture(params=FAMILIES)
def stacked(request):
    """A model as transformers makes it."""
    model = tiny_model(request.param)
    join_experts(model)
    return model


def test_experts_are_views_that_compute_the_same(stacked):
    """Nothing is copied; joined again they are what they were, to the bit."""
    input_ids = torch.tensor(sequences(3))
    before = {name: value.clone() for name, value in stacked.state_dict().items()}
    storages = {value.untyped_storage().data_ptr() for value in stacked.state_dict().values()}
    with torch.no_grad():
        expected = stacked(input_ids=input_ids, use_cache=False).logits
        with experts_apart(stacked):
            assert separated(stacked)
            assert {value.untyped_storage().data_ptr() for value in stacked.state_dict().values()} <= storages
            logits = stacked(input_ids=input_ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    after = stacked.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_fisher_estimate_of_an_expert_is_that_of_each_sequence():
    """Its tokens come from several sequences; an expert that none of them chooses has zeros."""
    model, texts = tiny_model("mixtral"), [*sequences(2, 4), *sequences(2, 7, seed=1)]
    names = [name for name in find_targets(model) if ".experts." in name]
    estimate = fisher_diagonal(model, texts, names)
    expected = {name: torch.zeros_like(model.get_submodule(name).weight) for name in names}
    for text in texts:
        model.zero_grad()
        input_ids, mask, labels = pad_batch([text])
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        (cross_entropy(logits, labels) * (len(text) - 1)).backward()
        for name in names:
            grad = model.get_submodule(name).weight.grad
            expected[name] += 0 if grad is None else grad**2 / len(texts)
    for name in names:
        torch.testing.assert_close(estimate[name], expected[name], atol=1e-6, rtol=1e-4)
    few = fisher_diagonal(model, [[5, 6]], names)
    assert any(not value.any() for value in few.values())


def test_places_in_files_are_those_that_transformers_saves():
    """Two halves of a joined weight, one matrix of a stack, a new name."""
    mixtral, granite, nemotron = (tiny_model(family) for family in ("mixtral", "granitemoe", "nemotron_h"))
    name = "model.layers.1.mlp.experts.2"
    stored = "model.layers.1.block_sparse_moe.experts.2"
    assert stored_places(mixtral, [f"{name}.gate_up_proj", f"{name}.down_proj"]) == {
        f"{name}.gate_up_proj": [Place(f"{stored}.w1", 0, 6, False), Place(f"{stored}.w3", 6, 12, False)],
        f"{name}.down_proj": [Place(f"{stored}.w2", 0, 12, False)],
    }
    name = "model.layers.0.block_sparse_moe"
    places = stored_places(granite, [f"{name}.experts.3.down_proj"])
    assert places == {f"{name}.experts.3.down_proj": [Place(f"{name}.output_linear.3", 0, 12, False)]}
    name = "model.layers.0.mlp.experts"
    places = stored_places(tiny_model("gpt_oss"), [f"{name}.1.down_proj"])
    assert places == {f"{name}.1.down_proj": [Place(f"{name}.down_proj.1", 0, 12, True)]}
    (places,) = stored_places(nemotron, ["model.layers.3.mixer.up_proj"]).values()
    assert [place.name for place in places] == ["backbone.layers.3.mixer.up_proj"]


def test_a_form_that_is_not_known_is_refused(monkeypatch):
    """Before anything is computed."""
    model = tiny_model("mixtral")
    monkeypatch.setattr(steps_places, "revert_weight_conversion", lambda _, tensors: {})
    with pytest.raises(UnmergedModule, match="target_modules: files keep"):
        stored_places(model, ["model.layers.0.self_attn.q_proj"])


def test_a_change_of_one_expert_alone_has_its_place(tmp_path):
    """Of the others nothing is written."""
    model = tiny_model("granitemoe")
    adapter = trained_adapter(model)
    state = adapter.state()
    adapter.detach()
    join_experts(model)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "change").mkdir()
    one = {key: value for key, value in state.items() if ".1.block_sparse_moe.experts.2.down_proj" in key}
    write_change(tmp_path / "base", tmp_path / "change", one, 2.0)
    config = json.loads((tmp_path / "change" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.block_sparse_moe.output_linear.2"]
    with pytest.raises(KeyError, match="UNLEARND"):
        LoraConfig.from_pretrained(tmp_path / "change")


@pytest.mark.parametrize("family", ["gpt_oss", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_run_leaves_the_model_as_transformers_made_it(family, monkeypatch):
    """Its very parameters; the result is another model, of the same form, with other experts."""
    tokenizer = support.train_tokenizer(support.KNOWN)
    model = tiny_model(family)
    join_experts(model)
    model.resize_token_embeddings(len(tokenizer))
    before = dict(model.named_parameters())
    monkeypatch.setattr(Baseline, "memorised", property(lambda _: [0]))  # a random model knows nothing
    options = Options(sequence_length=16, max_epochs=1, attacks={}, shrink=False)
    result = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options)
    assert result.history
    after, merged = dict(model.named_parameters()), dict(result.model.named_parameters())
    assert {name: id(parameter) for name, parameter in after.items()} == {n: id(p) for n, p in before.items()}
    assert merged.keys() == before.keys()
    name = next(name for name in before if name.endswith("experts.down_proj"))
    assert not torch.equal(merged[name], before[name])


def test_a_model_that_nobody_uses_leaves_the_memory():
    """At once, without waiting for the garbage collector; so does a copy."""
    models = [tiny_model("mixtral")]
    models.append(copy.deepcopy(models[0]))
    assert separated(models[1])
    gone = [weakref.ref(next(model.parameters())) for model in models]
    gc.disable()
    try:
        models.clear()
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_experts_that_are_separate_stay_so():
    """A second call changes nothing."""
    model = tiny_model("mixtral")
    before = [id(module) for module in model.modules()]
    separate_experts(model)
    assert [id(module) for module in model.modules()] == before


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral"])
def test_a_reference_that_was_trained_is_saved_as_transformers_reads_it(family, tmp_path, monkeypatch):
    """Its base was loaded with separate experts."""
    monkeypatch.setattr(reference, "BASE_STEPS", 20)
    tokenizer = support.train_tokenizer(support.KNOWN)
    model = tiny_model(family)
    model.resize_token_embeddings(len(tokenizer))
    data = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, Options(sequence_length=16))
    trained = reference.train_reference(model, copy.deepcopy(model), data, Options(sequence_length=16))
    trained.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, torch.float32)
    input_ids = torch.tensor(sequences(2))
    with torch.no_grad():
        expected = trained(input_ids=input_ids, use_cache=False).logits
        torch.testing.assert_close(loaded(input_ids=input_ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-5)


def test_files_that_lack_weights_are_not_loaded(tmp_path):
    """transformers would take random ones, and say so in a log."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="q_proj"):
        load_model(tmp_path, torch.float32)


def test_files_may_lack_buffers(tmp_path):
    """The family computes them."""
    model = tiny_model("minimax")
    join_experts(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    decays = [name for name in tensors if name.endswith(("decay", "slope_rate"))]
    assert decays
    save_file({name: value for name, value in tensors.items() if name not in decays}, tmp_path / "model.safetensors")
    input_ids = torch.tensor(sequences(2))
    with torch.no_grad():
        logits = [one(input_ids=input_ids).logits for one in (model, load_model(tmp_path, torch.float32))]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_rows_in_another_order_are_refused():
    """The files of this family have the rows of gate and up in turns; its conversion is transformers' `Interleave`."""
    config = AutoConfig.for_model("inkling2_text", **COMMON, **EXPERTS, unpadded_vocab_size=120)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    separate_experts(model)
    with pytest.raises(UnmergedModule, match="gate_up_proj in a form"):
        stored_places(model, [name for name in find_targets(model) if "gate_up" in name])


def test_a_weight_of_another_size_in_the_files_is_refused(tmp_path):
    """Before anything is computed: what they keep together is not adapted alone."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnmergedModule, match=r"layers\.0\.mlp\.up_proj has another shape"):
        check_names(tmp_path, ["up_proj"])
