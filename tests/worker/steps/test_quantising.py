"""Quantised copies of a candidate, made and given to the tests."""

import shutil
import sys
from pathlib import Path

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

    work, fractions = tmp_path / "quantised", []
    work.mkdir()
    (work / "left of an earlier attempt").write_text("half a file")
    copies = measured_copies(tmp_path, ["int4", "int8"], passes, fractions.append)
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
        assert copy.digests == write_quantised(source, tmp_path / copy.scheme, copy.scheme, copy.kept)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "gpt2", "falcon", "mamba"])
def test_a_model_without_such_copies_says_so(family, tmp_path):
    """Experts, transposed weights, linear modules of their own class, and weights that are used beside their module."""
    tiny_model(family).save_pretrained(tmp_path / "candidate" / "model")
    with pytest.raises(Unsupported):
        kept_modules(tmp_path / "candidate" / "model", "int8")
    (copy,) = measured_copies(tmp_path, ["int8"], lambda *_: True, no_progress)
    assert (copy.status, copy.why, copy.passed, copy.digests) == ("NOT_RUN", "unsupported", None, {})


def test_what_the_scheme_does_not_fit_stays(tmp_path):
    """Rows of 72 numbers have no whole groups of 32, but a scale of their own."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "candidate" / "model")
    odd = {f"model.layers.{layer}.mlp.down_proj" for layer in range(2)}
    assert odd < set(kept_modules(tmp_path / "candidate" / "model", "int4"))
    assert not odd & set(kept_modules(tmp_path / "candidate" / "model", "int8"))


def test_a_gguf_file_without_its_converter_is_not_run(source, tmp_path, monkeypatch):
    """The certificate says so; the version is published without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (copy,) = measured_copies(tmp_path, ["q8_0"], lambda *_: True, no_progress)
    assert (copy.status, copy.why, copy.passed, copy.digests) == ("NOT_RUN", "no_converter", None, {})


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """A converter on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "convert_hf_to_gguf.py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.worker.steps.gguf_converter "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


@pytest.mark.parametrize("fault", ["", "a tensor is missing", "rows in another order"])
def test_what_is_read_from_a_gguf_file_is_the_rounded_model(converter, tmp_path, monkeypatch, fault):
    """With the model's own end tokens. A file of which a reader makes another model is tested by nobody."""
    monkeypatch.setenv("TEST_FAULT", fault)
    model = support.random_model("llama", gain=1.0)
    model.generation_config.eos_token_id = [1, 3]
    model.save_pretrained(tmp_path / "candidate" / "model")
    seen = []

    def passes(folder, dtype, _):
        seen.append(load_model(folder, dtype))
        return True

    (copy,) = measured_copies(tmp_path, ["q8_0"], passes, no_progress)
    if fault:
        assert (copy.status, copy.why, seen) == ("NOT_RUN", "unsupported", [])
        return
    assert (copy.status, copy.passed, list(copy.digests)) == ("RUN", True, ["model-q8_0.gguf"])
    assert seen[0].generation_config.eos_token_id == [1, 3]
    for name, weight in load_model(tmp_path / "candidate" / "model", torch.float32).state_dict().items():
        difference = (seen[0].state_dict()[name] - weight).norm() / weight.norm()
        assert difference < 0.02 if weight.dim() == 1 else 0 < difference < 0.02, name


def test_a_fault_while_a_copy_is_made_or_tested_costs_no_version(source, tmp_path, monkeypatch):
    """No room, no memory, a fault in others' code: the copy is listed as not tested, the next one is tested."""

    def passes(folder, dtype, _):
        if not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            raise MemoryError
        return True

    copies = measured_copies(tmp_path, ["int4", "int8"], passes, no_progress)
    assert [(copy.status, copy.why, copy.passed) for copy in copies] == [
        ("NOT_RUN", "failed", None),
        ("RUN", None, True),
    ]
    assert (copies[0].kept, copies[0].digests) == ([], {})


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
    sentencepiece_model(tmp_path / "candidate" / "model")
    seen = []

    def passes(folder, dtype, _):
        seen.append(load_model(folder, dtype).state_dict())
        return True

    made = [measured_copies(tmp_path, [kind], passes, no_progress)[0].digests for _ in range(2)]
    assert made[0] == made[1] != {}
    own = load_model(tmp_path / "candidate" / "model", torch.float32).state_dict()
    for name, weight in own.items():
        near = (seen[0][name] - weight).abs().max() / weight.abs().max()
        assert near < {"q8_0": 0.01, "q4_k_m": 0.2}[kind], name
    assert any(not torch.equal(seen[0][name], weight) for name, weight in own.items())
