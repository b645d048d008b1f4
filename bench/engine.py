"""Speed and memory of the engine against literal re-implementations of the published code, both sides in one run.

    python -m bench.engine --model FOLDER [--parts decode,decode32,losses,fisher,samples,probes,job] [--copy FOLDER]

Prints a Markdown table with ratios. `decode32` times the reference on a random tenth of its prefixes and scales the
time up. `job` is a whole run on `--copy`, a model that knows the forget set by heart (`bench.memorise`): Fisher, SVD,
training, every decision, exact verification, merge. Its reference is the literal pipeline with the same epochs, of
which one epoch is timed; the time of its verification is that of `decode32`. Neither side measures thresholds and the
state before. `samples` draws 28 tokens after 64 equal prompts; its reference are transformers' own samples in float32,
beside ours in float32 and in the dtype of training. `probes` asks prompts of several lengths; its reference asks those
of each length by themselves, as we did. The peak memory of the losses is measured in a process of its own
for each side.
"""

import argparse
import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import reference
from bench.data import machine
from bench.initialisation import fisher, svd
from bench.loss_memory import losses
from bench.paper_setup import LENGTH, forget_sequences
from bench.timing import row, timed
from bench.whole_job import job
from worker.engine.data import chunks
from worker.engine.device import measuring
from worker.engine.generate import continuations
from worker.engine.metrics.extraction import extraction_likelihood
from worker.engine.metrics.memorization import memorization_accuracy
from worker.engine.parent import sequence_log_likelihoods
from worker.engine.types import CausalLM, Tokenizer

SAMPLES, DRAWN = 64, 28  # as probes are asked
PROBES = range(8, 32)  # tokens of each prompt


def decode(
    model: CausalLM, tokenizer: Tokenizer, data: Path, count: int, length: int, share: float, evaluations: list[float]
) -> list[str]:
    """Rows of the table: one EL10 + MA evaluation; the reference's seconds are added to `evaluations`."""
    input_ids = forget_sequences(tokenizer, data, count, length)
    (el, ma), ours = timed(lambda: (extraction_likelihood(model, input_ids), memorization_accuracy(model, input_ids)))
    theirs_el, theirs_ma, theirs = reference.evaluate(model, input_ids, share=share)
    evaluations.append(theirs)
    note = f"EL10 {el.mean():.4f}, MA {ma.mean():.4f}"
    if share == 1:
        difference = max(float((el - theirs_el).abs().max()), float((ma - theirs_ma).abs().max()))
        note += f"; largest difference {difference:.1e}"
    else:
        note += f"; reference on {share:.0%} of its prefixes, scaled"
    return [row(f"EL10 + MA, {count} x {length}", theirs, ours, "s", note)]


def samples(model: CausalLM, tokenizer: Tokenizer) -> list[str]:
    """Rows of the table: how fast samples are drawn, in float32 and in the dtype of training."""
    prompts = [tokenizer("She was born in Leeds, and asked to be called at")["input_ids"]] * SAMPLES
    input_ids = torch.tensor(prompts)
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_new_tokens": DRAWN, "max_new_tokens": DRAWN}

    def usual() -> None:
        with measuring(model):
            model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **how)

    def ours(dtype: str) -> float:
        return timed(lambda: continuations(model, prompts, DRAWN, temperature=1.0, dtype=dtype))[1]

    _, theirs = timed(usual)
    end, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None  # all are of one length
    wide, narrow = ours("float32"), ours("auto")
    model.requires_grad_(False)  # as it is beside an adapter
    frozen = ours("auto")
    model.requires_grad_(True)
    said = continuations(model, prompts, DRAWN, temperature=1.0)
    model.generation_config.eos_token_id = end
    whole = [prompt + tokens for prompt, tokens in zip(prompts, said, strict=True)]
    likely, rounded = (sequence_log_likelihoods(model, whole, dtype) for dtype in ("float32", "auto"))
    apart = (likely - rounded).abs()
    note = f"log-likelihoods of whole samples {apart.mean():.3f} nats apart on average, {apart.max():.3f} at most"
    return [
        row(f"{SAMPLES} samples, products in float32", theirs, wide, "s", ""),
        row(f"{SAMPLES} samples, products in the dtype of training", theirs, narrow, "s", note),
        row(f"{SAMPLES} samples, the same, weights frozen", theirs, frozen, "s", ""),
    ]


def asked(model: CausalLM, parts: Sequence[list[list[int]]], temperature: float) -> list[list[int]]:
    """What the model says after the prompts, one part after the other."""
    say = partial(continuations, model, new=DRAWN, temperature=temperature, dtype="auto")
    return [said for prompts in parts for said in say(prompts)]


def probes(model: CausalLM, tokenizer: Tokenizer, data: Path) -> list[str]:
    """Rows of the table: prompts of several lengths, each length by itself, and all at once."""
    input_ids = forget_sequences(tokenizer, data, len(PROBES), max(PROBES)).tolist()
    rows = []
    for name, copies, temperature in (("greedily", 1, 0.0), ("in 20 samples", 20, 1.0)):
        by_length = [[ids[:size]] * copies for ids, size in zip(input_ids, PROBES, strict=True)]
        at_once = [*chunks([*chain.from_iterable(by_length)], SAMPLES)]
        (apart, theirs), (together, ours) = (
            timed(partial(asked, model, parts, temperature)) for parts in (by_length, at_once)
        )
        note = "" if temperature else f"{sum(map(operator.ne, apart, together))} of {len(apart)} answers differ"
        rows.append(row(f"{len(PROBES)} prompts, asked {name}", theirs, ours, "s", note))
    return rows


def main() -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--copy", help="the same model, knowing 32_0 by heart, for `job`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--twice", action="store_true", help="`job` runs our side twice and compares the bytes")
    parser.add_argument("--parts", default="decode,decode32,losses,fisher,svd,samples,probes,job")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    evaluations: list[float] = []
    parts: dict[str, Callable[[], list[str]]] = {
        "losses": losses,
        "fisher": lambda: fisher(model, tokenizer, arguments.data, arguments.model),
        "svd": lambda: svd(model),
        "decode": lambda: decode(model, tokenizer, arguments.data, 4, 128, 1.0, []),
        "decode32": lambda: decode(model, tokenizer, arguments.data, 32, LENGTH, 0.1, evaluations),
        "samples": lambda: samples(model, tokenizer),
        "probes": lambda: probes(model, tokenizer, arguments.data),
        "job": lambda: job(arguments.copy, arguments.data, evaluations, twice=arguments.twice),
    }
    print(f"Machine: {machine()}, torch {torch.__version__}.\n")
    print("| | reference | ours | ratio | |\n|---|---|---|---|---|", flush=True)
    for name in arguments.parts.split(","):
        print("\n".join(parts[name]()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
