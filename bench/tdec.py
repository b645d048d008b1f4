"""Table 1 and figure 6 of the paper on any causal model: GA, GD, IHL, IHL + FILA (paper), and ours.

    python -m bench.tdec --model FOLDER [--methods ga,gd,ihl,paper,ours] [--sets 32_0,32_1] [--domain 0.5]
    python -m bench.tdec --model FOLDER --continual [--methods ours]
    python -m bench.tdec --report tdec.jsonl --plot frontier.png

The model is a local folder or a hub id; it runs on CUDA if there is a device. Forget sets are the first 200 tokens of
each text of `tdec/lm_extraction_*.csv`. Retain text is `general/wikitext.csv`; with `--domain` a share of it comes from
Pile texts that are used for nothing else. Thresholds, perplexity and domain retain text come from three disjoint parts
of `general/pile.csv`. Without `--exact` the thresholds of EL10 are lower bounds, from matches alone, which is stricter.

A method runs until its criterion holds (mean MA, and EL10 of the sequences likeliest to have any, at or under the
held-out means, and every sequence's own verdict) or `--epochs` are done. `--continual` forgets the four tasks of 128_0
one by one. Each task starts from the model that the task before left, and its result must pass the verdicts of the
earlier tasks, too. Results are appended to a JSON lines file, from which `--report` prints the table and `--plot` draws
the frontier.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.data import machine, some
from bench.paper_report import plot, report
from bench.paper_setup import LENGTH, Bench, Texts
from worker.engine.adapter import Adapter
from worker.engine.attacks import ATTACKS, MEMBERSHIP
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import Threshold
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.samples import RetainSampler, own_samples
from worker.engine.train import Trainer
from worker.engine.types import CausalLM
from worker.engine.unlearn import initial_factors, merged_copy
from worker.engine.utility import Watched

FRONTIER = 16  # Pile sequences whose perplexity is measured after each step
METHODS: dict[str, Options] = {
    "ga": replace(Options.paper(), loss="ga", init="lora"),
    "gd": replace(Options.paper(), loss="gd", init="lora"),
    "ihl": replace(Options.paper(), init="lora"),
    "paper": Options.paper(),
    "ours": Options(margin=0.5),
}


def run(
    bench: Bench, names: list[str], options: Options, domain: float, on_step: Callable[[dict[str, float]], None]
) -> tuple[CausalLM, dict[str, object]]:
    """One method on one set, with the frontier step by step; returns the merged model and the measurements."""
    data, started = bench.prepare(names, domain), time.monotonic()
    everything, start = data.forget + data.earlier, perplexity(bench.model, bench.pile[:FRONTIER])
    known = bench.attacked(bench.model, data)
    thresholds = bench.thresholds(everything.sequences)
    samples = own_samples(bench.model, bench.tokenizer, data, options).every
    factors = initial_factors(bench.model, data, options)
    adapter, initialised = Adapter(bench.model, factors, options.scale), time.monotonic()
    frontier: list[dict[str, float]] = []

    def measure_step(_: float) -> None:
        frontier.append(frontier_point(bench, data.forget.sequences, thresholds))
        on_step(frontier[-1])

    trainer = Trainer(
        model=bench.model,
        adapter=adapter,
        forget=everything,
        thresholds=thresholds,
        counted=data.forget.requests,
        retain=RetainSampler(bench.tokenizer, data.retain_texts, LENGTH, options.seed),
        watched=Watched(bench.watched, perplexity(bench.model, bench.watched)),
        options=options,
        progress=measure_step,
        samples=samples,
    )
    checkpoint = trained(trainer)
    merged = merged_copy(bench.model, checkpoint.final, options)
    return merged, {
        "epochs": len(checkpoint.history),
        "steps": sum(int(entry["steps"]) for entry in checkpoint.history),
        "met": checkpoint.met,
        "strength": checkpoint.strength,
        "initialise_seconds": initialised - started,
        "seconds": time.monotonic() - initialised,
        **measure_merged(bench, merged, data, thresholds),
        "parent_attacks": known,
        "history": checkpoint.history,
        "frontier": frontier,
        "frontier_start": start,
    }


def trained(trainer: Trainer) -> Checkpoint:
    """The last checkpoint; afterwards the model has no adapter."""
    try:
        return trainer.run()
    finally:
        trainer.adapter.detach()


def frontier_point(bench: Bench, sequences: list[list[int]], thresholds: list[Threshold]) -> dict[str, float]:
    """Mean MA, mean lower bound of EL, sequences over their 95th percentile, and Pile perplexity, after a step."""
    matches = token_matches(bench.model, sequences)
    ma = [accuracy(row) for row in matches]
    el = [lower_bound(row, threshold.n) for row, threshold in zip(matches, thresholds, strict=False)]
    pile = perplexity(bench.model, bench.pile[:FRONTIER])
    return {"ma": mean(ma), "el": mean(el), "over": count_over(ma, thresholds), "pile": pile}


def measure_merged(
    bench: Bench, merged: CausalLM, data: Prepared, thresholds: list[Threshold]
) -> dict[str, float | dict[str, float]]:
    """MA of the forget set on the merged model and its limit, sequences over their 95th percentile, and attacks."""
    ma = [accuracy(row) for row in token_matches(merged, (data.forget + data.earlier).sequences)]
    count = len(data.forget.request_ids)
    return {
        "ma": mean(ma[:count]),
        "ma_limit": mean([threshold.ma_mean for threshold in thresholds[:count]]),
        "over": count_over(ma[:count], thresholds[:count]),
        "earlier_over": count_over(ma[count:], thresholds[count:]),
        "attacks": bench.attacked(merged, data),
    }


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def count_over(ma: Sequence[float], thresholds: Sequence[Threshold]) -> int:
    """How many sequences have an MA over the 95th percentile of their threshold."""
    return sum(value > threshold.ma_p95 for value, threshold in zip(ma, thresholds, strict=False))


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local folder or a hub id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--methods", type=some(METHODS), default=",".join(METHODS))
    parser.add_argument("--sets", type=some(("32_0", "32_1")), default="32_0,32_1")
    parser.add_argument("--continual", action="store_true", help="the four tasks of 128_0, one after the other")
    parser.add_argument("--domain", type=float, default=0.0, help="share of retain text from Pile texts")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--exact", action="store_true", help="thresholds of EL10 from held-out text: half an hour more")
    parser.add_argument(
        "--attacks",
        type=some(ATTACKS),
        default=",".join(sorted(MEMBERSHIP)),
        help="all of 200 tokens take hours on a CPU",
    )
    parser.add_argument("--options", type=json.loads, default={}, help="more options, JSON")
    parser.add_argument("--no-general", action="store_true", help="leave LAMBADA and the dialogues out")
    parser.add_argument("--out", type=Path, default=Path("tdec.jsonl"))
    parser.add_argument("--report", type=Path, help="print the table of such a file")
    parser.add_argument("--plot", type=Path, help="with --report: draw the frontier")
    arguments = parser.parse_args()
    if not (arguments.model or arguments.report):
        parser.error("--model or --report")
    replace(Options(), **arguments.options)  # an unknown one is refused here
    return arguments


def main() -> int:
    """Run the methods on the sets that the arguments name, or print the table of earlier results."""
    arguments = parse_arguments()
    if arguments.report:
        lines = [json.loads(line) for line in arguments.report.read_text().splitlines()]
        print(report(lines))
        if arguments.plot:
            plot([line for line in lines if "/" not in line["set"]], arguments.plot)
        return 0
    print(machine())  # and the commit of now
    original = Bench(arguments.model, Texts.read(arguments.data), exact=arguments.exact)
    original.attacks = arguments.attacks
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    before = original.abilities(original.model, everything=not arguments.no_general)
    for method in arguments.methods:
        run_method(original, method, arguments, before)
    return 0


def run_method(original: Bench, method: str, arguments: argparse.Namespace, before: dict[str, float]) -> None:
    """One method on every set; appends a JSON line for each run."""
    sets = [f"128_0/{task}" for task in range(4)] if arguments.continual else arguments.sets
    options = replace(METHODS[method], max_epochs=arguments.epochs, **arguments.options)
    bench = original
    for index, name in enumerate(sets):
        print(name, method, flush=True)
        names = sets[: index + 1] if arguments.continual else [name]
        merged, measurements = run(bench, names, options, arguments.domain, lambda step: print(step, flush=True))
        line = {
            "machine": machine(),
            "model": arguments.model,
            "set": name,
            "method": method,
            "domain": arguments.domain,
            "options": asdict(options),
            "before": before,
            "after": original.abilities(merged, everything=not arguments.no_general),
            **measurements,
        }
        with arguments.out.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        print({k: v for k, v in line.items() if k not in ("history", "frontier", "options")}, flush=True)
        if arguments.continual:
            bench = bench.with_model(merged)


if __name__ == "__main__":
    sys.exit(main())
