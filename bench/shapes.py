"""The default policy, untouched but for a perplexity budget of 1.05, on models of several shapes.

    python -m bench.shapes --cache FOLDER [--shapes neo,neox,...] [--requests 1,16,64]
    python -m bench.shapes --cache FOLDER --model FOLDER [--requests 1]

Each small model learns 80 invented people by heart; 1, 16 or 64 of them ask. The retain file has 16 of the people who
never ask and 20 paragraphs of prose; the held-out file 160 people whom no model has seen. `--model` takes a pretrained
model instead, which learns the same people first. `Nobody named` are the people who neither ask nor stand in the retain
file; if 64 ask there is none. Of the rates, `r` marks an epoch that repairs, `k` one that trains only on what is kept.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen2Config

from bench.data import machine, some
from bench.forgetting import HELDOUT, PROSE, sequences, trained
from bench.memorise import taught
from worker.demo.model import LENGTH, model_config
from worker.demo.people import people
from worker.engine import Options, unlearn
from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.types import CausalLM, Tokenizer

KNOWN = [person.text for person in people(80, 11)]
OTHERS = 16  # people who never ask
COLUMNS = (
    *("model", "requests", "ended", "MA", "held-out perplexity", "MA in the retain file", "MA nobody named"),
    *("epochs: rates x 1e4", "s"),
)
COMMON = {"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
WIDE = {"hidden_size": 256, "num_attention_heads": 8}


def neox(vocabulary: int) -> PretrainedConfig:
    """GPT-NeoX, 4M."""
    return GPTNeoXConfig(vocab_size=vocabulary, num_hidden_layers=4, intermediate_size=1024, **WIDE, **COMMON)


def llama(vocabulary: int) -> PretrainedConfig:
    """A Llama-style model, 10M."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=6,
        intermediate_size=1024,
        **COMMON,
    )


def qwen(vocabulary: int) -> PretrainedConfig:
    """Qwen2, 4M: biases in attention, shared input and output embeddings."""
    return Qwen2Config(
        vocab_size=vocabulary,
        num_key_value_heads=4,
        num_hidden_layers=4,
        intermediate_size=768,
        tie_word_embeddings=True,
        **WIDE,
        **COMMON,
    )


def gpt2(vocabulary: int) -> PretrainedConfig:
    """GPT-2, 4M: transposed weights."""
    return GPT2Config(
        vocab_size=vocabulary, n_positions=256, n_embd=256, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0
    )


CONFIGS: tuple[Callable[[int], PretrainedConfig], ...] = (neox, llama, qwen, gpt2)
SHAPES = {"neo": model_config} | {config.__name__: config for config in CONFIGS}


def row(model: CausalLM, tokenizer: Tokenizer, shape: str, requests: int, options: Options) -> str:
    """A row of the table: one job."""
    started, others = time.monotonic(), KNOWN[-OTHERS:]

    def progress(stage: str, fraction: float) -> None:
        print(f"{stage} {fraction:.0%} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    retain = [*others, *PROSE[:20]]
    result = unlearn(model, tokenizer, KNOWN[:requests], retain, HELDOUT, options, progress=progress)
    before, after, utility = (result.report[name] for name in ("before", "after", "utility"))
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert isinstance(utility, dict)
    marked = ((entry, "r" if entry["repairs"] else "k" if entry["keeps"] else "") for entry in result.history)
    rates = " ".join(f"{entry['learning_rate'] * 1e4:.3g}{mark}" for entry, mark in marked)
    groups = (others, KNOWN[requests:-OTHERS])
    kept = [
        [mean_accuracy(one, sequences(tokenizer, group)) for one in (model, result.model)] for group in groups if group
    ]
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    cells = [
        f"{shape}, {size:.1f}M",
        str(requests),
        str(result.report["reason"] or "passed"),
        f"{before['ma']:.3f} -> {after['ma']:.3f} (<= {after['ma_limit']:.3f})",
        f"x {utility['heldout_ratio']:.3f}",
        *(f"{pair[0]:.3f} -> {pair[1]:.3f}" for pair in kept),
        *[""] * (len(groups) - len(kept)),
        f"{len(result.history)}: {rates}",
        f"{time.monotonic() - started:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("bench-output/shapes"))
    parser.add_argument("--shapes", type=some(SHAPES), default=",".join(SHAPES))
    parser.add_argument("--model")
    parser.add_argument("--requests", type=some(range(1, 65)), default="1,16,64", metavar="1..64")
    arguments = parser.parse_args()
    options = Options(max_perplexity_ratio=1.05, sequence_length=LENGTH)
    print(f"Machine: {machine()}, torch {torch.__version__}.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for shape in [Path(arguments.model).name] if arguments.model else arguments.shapes:
        if arguments.model:
            model, tokenizer = taught(arguments.cache, "shape", KNOWN, arguments.model, LENGTH)
        else:
            model, tokenizer = trained(arguments.cache, f"shape-{shape}", KNOWN, None, SHAPES[shape])
        for requests in arguments.requests:
            print(row(model, tokenizer, shape, requests, options), flush=True)


if __name__ == "__main__":
    main()
