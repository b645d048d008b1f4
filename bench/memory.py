"""The memory of each stage of a job, measured, beside what the planner says of the configuration.

    python -m bench.memory MODEL --data FOLDER [--length 64] [--sequences 8] [--random LAYERS [--experts N]]

The stages run as a job runs them, in a process of their own on one thread, with one epoch of training. The texts to
forget are retained ones that count as memorised, whatever the model says of them. Peaks are those of the process, with
its libraries. `--random` makes a model of Llama's shape in bfloat16 with so many layers (16 are 1.1 billion weights),
or of Mixtral's with so many experts in each; MODEL is then the folder of its tokenizer.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MixtralConfig, PreTrainedModel

from bench.data import PeakMemory, machine, read
from worker.engine.baseline import Baseline
from worker.engine.measure import measure_after, measure_before
from worker.engine.options import Options
from worker.engine.plan import Need, Shapes
from worker.engine.prepare import Prepared, prepare
from worker.engine.types import Tokenizer
from worker.engine.unlearn import train
from worker.steps.loading import load_model
from worker.steps.memory import Stored, release
from worker.steps.merging import merge_files, write_change

HIDDEN, WIDE, HEADS, KEYS = 2048, 8192, 32, 8  # of the random model: those of Llama 3.2 1B


def main() -> None:
    """Print the table, or run the stages of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--random", type=int, metavar="LAYERS")
    parser.add_argument("--experts", type=int)
    parser.add_argument("--inside", action="store_true", help="what the child process does")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if arguments.random:
            make_random(arguments.model, Path(place), arguments.random, arguments.experts)
            command = [sys.executable, "-m", "bench.memory", place, "--data", str(arguments.data), "--inside"]
            command += ["--length", str(arguments.length), "--sequences", str(arguments.sequences)]
            subprocess.run(command, check=True)
        else:
            run(arguments.model, arguments.data, arguments.length, arguments.sequences)


def make_random(tokenizer: Path, folder: Path, layers: int, experts: int | None) -> None:
    """Write a random model of Llama's shape in bfloat16, or of Mixtral's, whose experts are an eighth as large."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    shape = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "vocab_size": len(words),
        "tie_word_embeddings": True,
    }
    if experts:
        config = MixtralConfig(**shape, intermediate_size=WIDE // 8, num_local_experts=experts)
    else:
        config = LlamaConfig(**shape, intermediate_size=WIDE)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)


def run(folder: Path, data: Path, length: int, sequences: int) -> None:
    """Run the stages, and print the table."""
    torch.set_num_threads(1)
    options = Options(
        sequence_length=length,
        heldout_sequences=20,
        utility_sequences=8,
        max_epochs=1,
        own_samples=16,
        probe_samples=0,
        attacks={"quantised": "report"},
        max_perplexity_ratio=1e9,
    )
    stored = Stored.read(folder, options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text for text in read(data / "general" / "wikitext.csv") if len(tokenizer(text).input_ids) >= length]
    cut = [tokenizer.decode(tokenizer(text).input_ids[: length - 2]) for text in texts]  # one sequence of each
    forget, retain, heldout = cut[:sequences], cut[sequences : sequences + 60], cut[-40:]
    prepared = prepare(tokenizer, forget, range(sequences), retain, heldout, stored.options)
    shapes = Shapes(stored.config, stored.dtype.itemsize, stored.options, len(prepared.forget.sequences))
    planned = {need.stage: need for need in shapes.needs(stored.options)}
    del shapes
    measured = stages(folder, stored, tokenizer, prepared)
    print(f"{machine()}\n\n{shapes_in_words(stored, planned['measure'])}, {sequences} sequences of {length} tokens\n")
    print("| stage | measured, MB | planned, MB | planned / measured | (measured - all else planned) / weights |")
    print("|---|---|---|---|---|")
    for stage, peak in measured.items():
        need = planned[stage]
        weights = f"{(peak * 1e6 - need.total + need.weights) / need.weights:.2f}" if need.weights else ""
        print(f"| {stage} | {peak:,.0f} | {need.total / 1e6:,.0f} | {need.total / 1e6 / peak:.2f} | {weights} |")


def shapes_in_words(stored: Stored, need: Need) -> str:
    """The model's size, for the table's head."""
    dtype = str(stored.dtype).removeprefix("torch.")
    return f"{stored.config.model_type}, weights of {need.weights / 1e6:,.0f} MB in {dtype}"


def stages(folder: Path, stored: Stored, tokenizer: Tokenizer, data: Prepared) -> dict[str, float]:
    """Stage -> the most MB that the process held in it. `train` stands for what is before it, too."""
    peaks: dict[str, float] = {}
    options, start = stored.options, PeakMemory()

    def end(stage: str) -> None:
        nonlocal start
        release()
        peaks[stage] = (start.peak() + start.start) * 2**20 / 1e6
        start = PeakMemory()

    def load(path: Path) -> PreTrainedModel:
        release()
        return load_model(path, stored.dtype, stored.device)

    baseline = memorised(measure_before(load(folder), tokenizer, data, options))
    end("measure")
    checkpoint = train(load(folder), tokenizer, data, baseline, options)
    end("train")
    with tempfile.TemporaryDirectory() as place:
        target, change = Path(place) / "model", Path(place) / "change"
        shutil.copytree(folder, target)
        change.mkdir()
        write_change(folder, change, checkpoint.final or checkpoint.adapter, options.scale)
        merge_files(folder, target, change)
        end("merge")
        measure_after(load(target), tokenizer, data, baseline, options)
        end("verify")
    return peaks


def memorised(baseline: Baseline) -> Baseline:
    """The same baseline, as if the parent knew every text."""
    verdicts = tuple(replace(verdict, looks_unseen=False) for verdict in baseline.before.verdicts)
    return replace(baseline, before=replace(baseline.before, verdicts=verdicts))


if __name__ == "__main__":
    main()
