"""Quantised copies of a candidate, made and given to the tests."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from service.quantised_files import write_quantised
from tests import support
from tests.worker.engine.families import tiny_model
from worker.engine.progress import no_progress
from worker.steps.loading import load_model
from worker.steps.quantising import Unsupported, kept_modules, measured_copies


@pytest.fixture
def source(tmp_path):
    """A model's folder."""
    folder = tmp_path / "candidate" / "model"
    support.random_model("llama", gain=1.0).save_pretrained(folder, max_shard_size="60KB")
    return folder


def test_each_copy_is_tested_from_its_files_and_removed(source, tmp_path):
    """What is tested are the rounded weights; the digests are those of files that anybody can make again."""
    seen = []

    def passes(folder, dtype, progress):
        progress(1.0)
        seen.append((dtype, load_model(folder, dtype).model.layers[0].mlp.up_proj.weight.detach()))
        return len(seen) == 1

    work, fractions = tmp_path / "work", []
    work.mkdir()
    (work / "left of an earlier attempt").write_text("half a file")
    copies = measured_copies(source, work, ["int4", "int8"], passes, fractions.append)
    assert [(copy.scheme, copy.status, copy.passed) for copy in copies] == [
        ("int4", "RUN", True),
        ("int8", "RUN", False),
    ]
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert not work.exists()
    own = load_model(source, torch.float32).model.layers[0].mlp.up_proj.weight.detach()
    distances = [float((weight - own).abs().max()) for _, weight in seen]
    assert distances[0] > 4 * distances[1] > 0
    for copy in copies:
        assert copy.kept == ["lm_head", "model.embed_tokens"]
        assert copy.files == write_quantised(source, tmp_path / copy.scheme, copy.scheme, copy.kept)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "gpt2", "falcon", "mamba"])
def test_a_model_without_such_copies_says_so(family, tmp_path):
    """Experts, transposed weights, linear modules of their own class, and weights that are used beside their module."""
    tiny_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(Unsupported):
        kept_modules(tmp_path / "model", "int8")
    (copy,) = measured_copies(tmp_path / "model", tmp_path / "work", ["int8"], lambda *_: True, no_progress)
    assert (copy.status, copy.why, copy.passed, copy.files) == ("NOT_RUN", "unsupported", None, {})


def test_what_the_scheme_does_not_fit_stays(tmp_path):
    """Rows of 72 numbers have no whole groups of 32, but a scale of their own."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    odd = {f"model.layers.{layer}.mlp.down_proj" for layer in range(2)}
    assert odd < set(kept_modules(tmp_path / "model", "int4"))
    assert not odd & set(kept_modules(tmp_path / "model", "int8"))


def test_a_gguf_file_without_its_converter_is_not_run(source, tmp_path, monkeypatch):
    """The certificate says so; the version is published without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (copy,) = measured_copies(source, tmp_path / "work", ["q8_0"], lambda *_: True, no_progress)
    assert (copy.status, copy.why, copy.passed, copy.files) == ("NOT_RUN", "no_converter", None, {})


def sentencepiece_model(folder) -> None:
    """A Llama with a tokenizer that llama.cpp's converter reads: it knows others by their digests alone."""
    sentencepiece = pytest.importorskip("sentencepiece")
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(support.people(200)),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.skipif(not shutil.which("convert_hf_to_gguf.py"), reason="llama.cpp is not installed")
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_gguf_file_of_llama_cpp_is_read_back_and_tested(kind, tmp_path):
    """The tested weights are near the model's own, and the file is the same when it is made again."""
    sentencepiece_model(tmp_path / "model")
    seen = []

    def passes(folder, dtype, _):
        seen.append(load_model(folder, dtype).state_dict())
        return True

    made = [
        measured_copies(tmp_path / "model", tmp_path / "work", [kind], passes, no_progress)[0].files for _ in range(2)
    ]
    assert made[0] == made[1] != {}
    own = load_model(tmp_path / "model", torch.float32).state_dict()
    for name, weight in own.items():
        near = (seen[0][name] - weight).abs().max() / weight.abs().max()
        assert near < {"q8_0": 0.01, "q4_k_m": 0.2}[kind], name
    assert any(not torch.equal(seen[0][name], weight) for name, weight in own.items())
