"""A whole run on a model that knows the forget set by heart, for `bench.engine`.

Our run has every step: Fisher, SVD, training, every decision, exact verification, merge. The reference is the literal
pipeline with the same epochs; one of its epochs is timed. Neither side measures thresholds and the state before.
"""

import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bench import reference
from bench.initialisation import RANK, SCALE, svd_seconds
from bench.paper_setup import LENGTH, Bench, Texts, forget_sequences
from bench.timing import row, timed
from worker.engine.adapter import Adapter, find_targets
from worker.engine.criterion import Judgement, judge
from worker.engine.data import pad_batch
from worker.engine.device import training
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.metrics.extraction import likelihood
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.samples import RetainSampler
from worker.engine.train import Trainer
from worker.engine.types import CausalLM
from worker.engine.unlearn import initial_factors, merged_copy
from worker.engine.utility import Watched


class TimedTrainer(Trainer):
    """Counts the seconds that its decisions take."""

    deciding = 0.0

    def _measure(self) -> tuple[list[float], list[float]]:
        values, seconds = timed(super()._measure)
        TimedTrainer.deciding += seconds
        return values

    def _with_el_sample(self, el_bounds: list[float], ma: Sequence[float]) -> list[float]:
        values, seconds = timed(lambda: super(TimedTrainer, self)._with_el_sample(el_bounds, ma))
        TimedTrainer.deciding += seconds
        return values


@dataclass(frozen=True)
class OurRun:
    """One whole run of ours: the merged file's digest, its epochs and steps, and the seconds of each part."""

    digest: str
    epochs: int
    steps: int
    seconds: dict[str, float]


def our_run(bench: Bench, options: Options, folder: Path) -> OurRun:
    """One whole run on 32_0."""
    data = bench.prepare(["32_0"], 0.0)
    thresholds = bench.thresholds(data.forget.sequences)
    factors, initialise = timed(lambda: initial_factors(bench.model, data, options))
    adapter = Adapter(bench.model, factors, options.scale)
    retain = RetainSampler(bench.tokenizer, data.retain_texts, LENGTH, options.seed)
    sets = (data.forget, thresholds, data.forget.requests, retain, Watched(data.utility[:32], math.nan))  # one rate
    trainer = TimedTrainer(bench.model, adapter, *sets, options)
    TimedTrainer.deciding = 0.0
    try:
        checkpoint, train = timed(trainer.run)
    finally:
        adapter.detach()
    _, merge = timed(lambda: merged_copy(bench.model, checkpoint.final, options).save_pretrained(folder))
    seconds = {"initialise": initialise, "train": train, "decide": TimedTrainer.deciding, "merge": merge}
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    steps = sum(int(entry["steps"]) for entry in checkpoint.history)
    return OurRun(digest, len(checkpoint.history), steps, seconds)


def reference_epoch(bench: Bench) -> float:
    """Seconds of one literal epoch: 4 steps of 8 forget and 8 retain sequences, losses on all logits.

    Products are bfloat16 where ours are, though the published code's default is float32.
    """
    data, model = bench.prepare(["32_0"], 0.0), bench.model
    names = find_targets(model)
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=names, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-4)
    sides = ((data.forget.sequences, reference.inverted_hinge), (data.retain, reference.cross_entropy))
    started = time.perf_counter()
    for step in range(4):
        batch = slice(8 * step, 8 * step + 8)
        optimiser.zero_grad()
        for sequences, loss in sides:
            input_ids, mask, labels = pad_batch(sequences[batch])
            with training(model, "auto"):
                logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
                torch.autograd.backward(loss(logits, labels))
        optimiser.step()
    seconds = time.perf_counter() - started
    adapted.unload()
    return seconds


def job(path: str, data: Path, evaluations: list[float], *, twice: bool) -> list[str]:
    """Rows of the table: a whole run on a model that knows 32_0 by heart, and its verification alone.

    The reference's `evaluations` in seconds are those of `decode32`, which takes as many steps for any model; it is
    timed here if `decode32` did not run.
    """
    bench = Bench(path, Texts.read(data), exact=False)
    options = Options(margin=0.5, adaptive=False, min_epoch_steps=4, fisher_sequences=32)
    with tempfile.TemporaryDirectory(prefix="unlearnd-bench-") as folder:
        run = our_run(bench, options, Path(folder) / "a")
        second_digest = our_run(bench, options, Path(folder) / "b").digest if twice else ""
        merged = AutoModelForCausalLM.from_pretrained(Path(folder) / "a").eval()
    print(json.dumps(run.seconds), run.epochs, run.steps, file=sys.stderr, flush=True)
    forget = bench.prepare(["32_0"], 0.0).forget
    (el, ma), exact = timed(lambda: exact_evaluation(merged, forget.sequences))
    judgement = judge(forget, bench.thresholds(forget.sequences), el, ma)
    before, after = bench.abilities(bench.model), bench.abilities(merged)
    if not evaluations:
        input_ids = forget_sequences(bench.tokenizer, data, 32, LENGTH)
        evaluations.append(reference.evaluate(merged, input_ids, share=0.05)[2])
    note = f"{run.epochs} epochs, {run.steps} steps; {_in_words(judgement)}; {len(find_targets(bench.model))} modules"
    lines = compare(bench, forget.sequences[:4], run, exact, evaluations[-1], note)
    utility = "; ".join(f"{k} {before[k]:.3f} -> {after[k]:.3f} (x {after[k] / before[k]:.3f})" for k in before)
    lines.append(f"| the model's other abilities | | | | {utility} |")
    if twice:
        verdict = "identical" if run.digest == second_digest else "DIFFERENT"
        lines.append(f"| the same job twice | | | | {verdict} safetensors digests |")
    return lines


def compare(
    bench: Bench, sequences: list[list[int]], run: OurRun, exact: float, evaluation: float, note: str
) -> list[str]:
    """Rows of the table: the seconds of our run and of the reference's; the reference's Fisher is timed on 4 of 64."""
    reference_svd, _ = svd_seconds(bench.model)
    _, fisher = timed(lambda: reference.fisher(bench.model, sequences))
    epoch = reference_epoch(bench)
    times = {"ours": run.seconds, "exact": exact, "their_epoch": epoch, "their_evaluation": evaluation}
    print(json.dumps(times), file=sys.stderr)
    theirs = 16 * fisher + reference_svd + run.epochs * (epoch + evaluation) + run.seconds["merge"]
    ours = run.seconds["initialise"] + run.seconds["train"] + run.seconds["merge"] + exact
    whole = f"reference: {run.epochs} epochs, one timed, one evaluation as above each"
    return [
        row("verification of a whole job", run.epochs * evaluation, run.seconds["decide"] + exact, "s", note),
        row("a whole job", theirs, ours, "s", whole),
    ]


def _in_words(judgement: Judgement) -> str:
    """A judgement of exact values, in words."""
    failed = sum(not v.passed for v in judgement.verdicts)
    el = f"EL10 {judgement.el:.4f} (<= {judgement.el_limit:.4f})"
    ma = f"MA {judgement.ma:.4f} (<= {judgement.ma_limit:.4f})"
    return f"final exact {el}, {ma}, verdicts failed {failed}"


def exact_evaluation(model: CausalLM, sequences: list[list[int]]) -> tuple[list[float], list[float]]:
    """EL10 and MA of each sequence, in full."""
    el = [likelihood(g.input_ids, g.continuations, 10) for g in greedy_continuations(model, sequences, n=10)]
    return el, [accuracy(row) for row in token_matches(model, sequences)]
