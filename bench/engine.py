"""Speed and memory of the engine against literal re-implementations of the published code, both sides in one run.

    python -m bench.engine --model FOLDER [--parts decode,decode32,losses,fisher,job] [--copy FOLDER]

Prints a Markdown table with ratios. `decode32` times the reference on a random tenth of its prefixes and scales it
up. `job` is a whole run on `--copy`, a model that knows the forget set by heart (`bench.memorise`): Fisher, SVD,
training, every decision, exact verification, merge; its reference is the literal pipeline doing the same epochs, of
which one epoch is timed and its verification is `decode32`'s; thresholds and the state before are measured on
neither side. The peak memory of the losses is measured in a process
of its own for each side.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from bench import reference
from bench.data import PeakMemory, machine, read
from bench.tdec import Bench, Texts
from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.criterion import Judgement, judge
from worker.engine.data import encode, first_windows, pad_batch
from worker.engine.device import training
from worker.engine.fisher import fisher_diagonal
from worker.engine.head import Head
from worker.engine.inits.fila import fila_factors
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.ihl import inverted_hinge_rows
from worker.engine.losses.rows import RowRule, of_hidden
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.metrics.extraction import extraction_likelihood, likelihood
from worker.engine.metrics.memorization import accuracy, memorization_accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import RetainSampler
from worker.engine.train import Trainer
from worker.engine.unlearn import initial_factors, merged_copy

VOCABULARY, HIDDEN, ROWS, LENGTH = 262_144, 640, 8, 200
RANK, SCALE = 16, 2.0
T = TypeVar("T")


def row(name: str, theirs: float, ours: float, unit: str, note: str) -> str:
    """A line of the table."""
    return f"| {name} | {theirs:.2f} {unit} | {ours:.2f} {unit} | {theirs / ours:.1f} x | {note} |"


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """A function's value and its seconds."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def sequences_of(tokenizer: Any, data: Path, count: int, length: int) -> Tensor:
    """[count, length] of the forget set 32_0; a text that is shorter is filled up with the one after it."""
    texts = read(data / "tdec" / "lm_extraction_32_0.csv")
    ids = [encode(tokenizer, a + b)[:length] for a, b in zip(texts, texts[1:] + texts[:1], strict=True)]
    return torch.tensor(ids[:count])


def decode(
    model: Any, tokenizer: Any, data: Path, count: int, length: int, share: float, evaluations: list[float]
) -> list[str]:
    """One EL10 + MA evaluation; the reference's seconds are added to `evaluations`."""
    input_ids = sequences_of(tokenizer, data, count, length)
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


class _Wide(nn.Module):
    """A head of 262,144 rows on a body that gives what it is given."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=VOCABULARY)
        self.base_model = nn.Identity()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.lm_head(self.base_model(input_ids).last_hidden_state))


def loss_side(name: str, side: str, pipe: Any) -> None:
    """Loss and backward of 8 x 200 tokens in a fresh process; sends seconds and peak MiB above the start."""
    model = _Wide()
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    rules: dict[str, RowRule] = {"IHL": partial(inverted_hinge_rows, margin=1.0), "CE": cross_entropy_rows}
    rule = rules[name]
    plain = {"IHL": reference.inverted_hinge, "CE": reference.cross_entropy}[name]
    head, count = Head(model), ROWS * (LENGTH - 1)
    memory, seconds = PeakMemory(), []
    for _ in range(3):
        hidden.grad = None
        started = time.perf_counter()
        if side == "ours":
            with training(model, "float32"):
                value = of_hidden(head, hidden, labels, rule) / count
                torch.autograd.backward(value)
        else:
            value = plain(model.lm_head(hidden), labels)
            torch.autograd.backward(value)
        seconds.append(time.perf_counter() - started)
    gradient = hidden.grad
    assert gradient is not None
    pipe.send((min(seconds), memory.peak(), float(value.detach()), gradient.norm().item()))


def losses() -> list[str]:
    """Time and peak memory of loss + backward at a vocabulary of 262,144."""
    lines = []
    for name in ("IHL", "CE"):
        found = {}
        for side in ("reference", "ours"):
            found[side] = in_a_process(loss_side, name, side)
        (t1, m1, v1, g1), (t2, m2, v2, g2) = found["reference"], found["ours"]
        same = f"value {abs(v1 - v2) / abs(v1):.0e}, gradient norm {abs(g1 - g2) / g1:.0e} apart"
        lines.append(row(f"{name} + backward, 8 x 200 x 262,144", t1, t2, "s", f"{t2 / t1:.0%} of the time; {same}"))
        lines.append(row(f"{name}, peak memory over the start", m1, m2, "MiB", f"{m2 / m1:.0%} of the memory"))
    return lines


def in_a_process(function: Callable[..., None], *arguments: Any) -> Any:
    """What a function sends from a fresh process, whose memory is nobody else's."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=function, args=(*arguments, send))
    process.start()
    found = receive.recv()
    process.join()
    return found


def fisher_peak(side: str, path: str, sequences: list[list[int]], pipe: Any) -> None:
    """Peak MiB over the loaded model of one side on some sequences, of which there may be any number more."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
    memory = PeakMemory()
    if side == "ours":
        fisher_diagonal(model, sequences, find_targets(model))
    else:
        reference.fisher(model, sequences)
    pipe.send(memory.peak())


def fisher(model: Any, tokenizer: Any, data: Path, path: str) -> list[str]:
    """Fisher of 32 + 32 sequences."""
    names = find_targets(model)
    forget = sequences_of(tokenizer, data, 32, LENGTH).tolist()
    retain = first_windows(tokenizer, read(data / "general" / "wikitext.csv"), LENGTH, 32)
    ours, seconds = timed(lambda: [fisher_diagonal(model, side, names) for side in (forget, retain)])
    theirs, reference_seconds = timed(lambda: [reference.fisher(model, side) for side in (forget, retain)])
    peaks = {side: in_a_process(fisher_peak, side, path, forget[:8]) for side in ("ours", "reference")}
    apart = max(_apart(a[n], b[n]) for a, b in zip(ours, theirs, strict=True) for n in names)
    few = forget[:2]
    sides = fisher_diagonal(model, few, names), reference.fisher(model, few)
    model.double()
    exact, wide = reference.fisher(model, few), fisher_diagonal(model, few, names)
    model.float()
    rounding = [max(_apart(side[n], exact[n]) for n in names) for side in (*sides, wide)]
    note = f"{apart:.0e} apart (relative); from float64 on two sequences: ours {rounding[0]:.0e}, reference "
    note += f"{rounding[1]:.0e}, ours computed in float64 {rounding[2]:.0e}; "
    note += f"peak memory over the model +{peaks['ours']:.0f} MiB, reference +{peaks['reference']:.0f} MiB"
    return [row("Fisher, 32 + 32 x 200", reference_seconds, seconds, "s", note)]


def _apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def svd(model: Any) -> tuple[list[str], float, float]:
    """FILA's factors of all targets."""
    weights = target_weights(model, find_targets(model))
    importance = {
        n: torch.rand(w.shape[0], generator=torch.Generator().manual_seed(0)) + 0.5 for n, w in weights.items()
    }
    with torch.no_grad():
        _, theirs = timed(lambda: [reference.fila(w, importance[n], RANK, SCALE) for n, w in weights.items()])
        _, ours = timed(lambda: [fila_factors(w, importance[n], RANK, SCALE) for n, w in weights.items()])
    return [row("SVD of all targets, rank 16", theirs, ours, "s", "full against randomised")], theirs, ours


class TimedTrainer(Trainer):
    """Counts the seconds that its decisions take."""

    deciding = 0.0

    def _measure(self) -> tuple[list[float], list[float]]:
        found, seconds = timed(super()._measure)
        TimedTrainer.deciding += seconds
        return found

    def _sampled(self, el: list[float], ma: Sequence[float]) -> list[float]:
        found, seconds = timed(lambda: super(TimedTrainer, self)._sampled(el, ma))
        TimedTrainer.deciding += seconds
        return found


def our_job(bench: Bench, options: Options, folder: Path) -> tuple[str, int, int, dict[str, float]]:
    """One whole run on 32_0: the merged file's digest, epochs, steps, seconds a part."""
    data = bench.prepared(["32_0"], 0.0)
    limits = bench.limits(data.forget.sequences)
    factors, initialise = timed(lambda: initial_factors(bench.model, data, options))
    adapter = Adapter(bench.model, factors, options.rank, options.scale)
    retain = RetainSampler(bench.tokenizer, data.retain_texts, LENGTH, options.seed)
    trainer = TimedTrainer(
        bench.model, adapter, data.forget, limits, data.forget.requests, retain, data.utility[:32], options
    )
    TimedTrainer.deciding = 0.0
    try:
        point, training = timed(trainer.run)
    finally:
        adapter.detach()
    _, merging = timed(lambda: merged_copy(bench.model, point.final, options).save_pretrained(folder))
    seconds = {"initialise": initialise, "train": training, "decide": TimedTrainer.deciding, "merge": merging}
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return digest, len(point.history), sum(e["steps"] for e in point.history), seconds


def their_epoch(bench: Bench) -> float:
    """Seconds of one literal epoch: 4 steps of 8 forget and 8 retain sequences, losses on all logits.

    Products are bfloat16 where ours are, though the published code's default is float32.
    """
    data, model = bench.prepared(["32_0"], 0.0), bench.model
    names = find_targets(model)
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=names, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-4)
    started = time.perf_counter()
    for step in range(4):
        part = slice(8 * step, 8 * step + 8)
        optimiser.zero_grad()
        losses_of = ((data.forget.sequences, reference.inverted_hinge), (data.retain, reference.cross_entropy))
        for sequences, loss in losses_of:
            input_ids, mask, labels = pad_batch(sequences[part])
            with training(model, "auto"):
                logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
                torch.autograd.backward(loss(logits, labels))
        optimiser.step()
    seconds = time.perf_counter() - started
    adapted.unload()
    return seconds


def job(path: str, data: Path, evaluations: list[float], *, twice: bool) -> list[str]:
    """A whole run on a model that knows 32_0 by heart, and its verification alone.

    The reference's `evaluations` in seconds are those of `decode32`, as many steps for any model; it is timed here if
    that did not run.
    """
    bench = Bench(path, Texts.of(data), exact=False)
    options = replace(Options(margin=0.5), fisher_sequences=32)
    with tempfile.TemporaryDirectory(prefix="unlearnd-bench-") as place:
        digest, epochs, steps, ours = our_job(bench, options, Path(place) / "a")
        again = our_job(bench, options, Path(place) / "b")[0] if twice else ""
        merged = AutoModelForCausalLM.from_pretrained(Path(place) / "a").eval()
        print(json.dumps(ours), epochs, steps, file=sys.stderr, flush=True)
        data_of = bench.prepared(["32_0"], 0.0)
        forget = data_of.forget.sequences
        (el, ma), exact = timed(lambda: exact_evaluation(merged, forget))
        found = judge(data_of.forget, bench.limits(forget), el, ma)
        before, after = bench.general(bench.model), bench.general(merged)
        if not evaluations:
            input_ids = sequences_of(bench.tokenizer, data, 32, LENGTH)
            evaluations.append(reference.evaluate(merged, input_ids, share=0.05)[2])
        evaluation = evaluations[-1]
    _, their_svd, _ = svd(bench.model)
    _, one = timed(lambda: reference.fisher(bench.model, forget[:4]))
    epoch = their_epoch(bench)
    theirs = 16 * one + their_svd + epochs * (epoch + evaluation) + ours["merge"]
    total = ours["initialise"] + ours["train"] + ours["merge"] + exact
    verifying = ours["decide"] + exact
    note = f"{epochs} epochs, {steps} steps; {_judged(found)}; {len(find_targets(bench.model))} modules"
    utility = "; ".join(f"{k} {before[k]:.3f} -> {after[k]:.3f} (x {after[k] / before[k]:.3f})" for k in before)
    print(
        json.dumps({"ours": ours, "exact": exact, "their_epoch": epoch, "their_evaluation": evaluation}),
        file=sys.stderr,
    )
    same = [f"| the same job twice | | | | {'identical' if digest == again else 'DIFFERENT'} safetensors digests |"]
    return [
        row("verification of a whole job", epochs * evaluation, verifying, "s", note),
        row("a whole job", theirs, total, "s", f"reference: {epochs} epochs, one timed, one evaluation as above each"),
        f"| the model's other abilities | | | | {utility} |",
        *(same if twice else []),
    ]


def _judged(found: Judgement) -> str:
    """A judgement of exact values, in words."""
    failed = sum(not v.passed for v in found.verdicts)
    el, ma = f"EL10 {found.el:.4f} (<= {found.el_limit:.4f})", f"MA {found.ma:.4f} (<= {found.ma_limit:.4f})"
    return f"final exact {el}, {ma}, verdicts failed {failed}"


def exact_evaluation(model: Any, sequences: list[list[int]]) -> tuple[list[float], list[float]]:
    """EL10 and MA of each sequence, all of it."""
    el = [likelihood(g.input_ids, g.continuations, 10) for g in greedy_continuations(model, sequences, n=10)]
    return el, [accuracy(row) for row in token_matches(model, sequences)]


def main() -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--copy", help="the same model, knowing 32_0 by heart, for `job`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--twice", action="store_true", help="`job` runs our side twice and compares the bytes")
    parser.add_argument("--parts", default="decode,decode32,losses,fisher,svd,job")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    evaluations: list[float] = []
    parts: dict[str, Callable[[], list[str]]] = {
        "losses": losses,
        "fisher": lambda: fisher(model, tokenizer, arguments.data, arguments.model),
        "svd": lambda: svd(model)[0],
        "decode": lambda: decode(model, tokenizer, arguments.data, 4, 128, 1.0, []),
        "decode32": lambda: decode(model, tokenizer, arguments.data, 32, LENGTH, 0.1, evaluations),
        "job": lambda: job(arguments.copy, arguments.data, evaluations, twice=arguments.twice),
    }
    print(f"Machine: {machine()}, torch {torch.__version__}.\n")
    print("| | reference | ours | ratio | |\n|---|---|---|---|---|", flush=True)
    for name in arguments.parts.split(","):
        print("\n".join(parts[name]()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
