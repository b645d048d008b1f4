"""What the attacks cost: the same job without attacks, and with every attack set to block.

A second table has the test of a model that misses its criterion after two epochs: to its end, and ended at the miss, as
where the run goes on.

    python -m bench.attacks --cache FOLDER [--requests 16,40]

The model, its texts and the default run are those of `bench.forgetting`.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.data import machine
from bench.forgetting import HELDOUT, KNOWN, METHODS, OPTIONS, PROSE, trained
from worker.engine import unlearn
from worker.engine.measure import measure_after, measure_before
from worker.engine.options import DEFAULT_ATTACKS
from worker.engine.prepare import prepare


def texts(requests: int) -> tuple[list[str], list[str], list[str]]:
    """The texts to forget, to retain, and held out."""
    return KNOWN[:requests], [*KNOWN[requests:][:24], *PROSE[:20]], HELDOUT


def seconds(cache: Path, requests: int, attacks: dict[str, str]) -> tuple[float, int]:
    """How long a job takes, and how many attacks it ran."""
    model, tokenizer = trained(cache, "known", KNOWN, None)
    started = time.monotonic()
    options = replace(OPTIONS, **METHODS["ihl"], attacks=attacks)  # type: ignore[arg-type]  # values of many types
    result = unlearn(model, tokenizer, *texts(requests), options)
    attacked = result.report["attacks"]
    assert isinstance(attacked, list)
    return time.monotonic() - started, sum(attack["status"] == "RUN" for attack in attacked)


def seconds_of_a_miss(cache: Path, requests: int) -> tuple[float, float]:
    """How long the test of a model after two epochs takes: to its end, and ended at its miss."""
    parent, tokenizer = trained(cache, "known", KNOWN, None)
    chosen = {**METHODS["ihl"], "attacks": dict.fromkeys(DEFAULT_ATTACKS, "block"), "max_epochs": 2}
    options = replace(OPTIONS, **chosen)  # type: ignore[arg-type]  # values of many types
    forget, retain, heldout = texts(requests)
    data = prepare(tokenizer, forget, range(requests), retain, heldout, options)
    baseline, taken = measure_before(parent, tokenizer, data, options), dict[bool, float]()
    model = unlearn(parent, tokenizer, forget, retain, heldout, options).model
    for ends_at_miss in (True, False):
        started = time.monotonic()
        report = measure_after(model, tokenizer, data, baseline, options, ends_at_miss=ends_at_miss)
        assert report.reason == "criterion_missed"
        assert bool(report.attacks) != ends_at_miss
        taken[ends_at_miss] = time.monotonic() - started
    return taken[False], taken[True]


def main() -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("bench-output/forgetting"))
    parser.add_argument("--requests", default="16,40")
    arguments = parser.parse_args()
    print(f"Machine: {machine()}, torch {torch.__version__}.\n")
    print(
        "| requests | job without attacks | every attack at block | attacks that ran | ratio |\n|---|---|---|---|---|"
    )
    for requests in map(int, arguments.requests.split(",")):
        without, _ = seconds(arguments.cache, requests, {})
        block, ran = seconds(arguments.cache, requests, dict.fromkeys(DEFAULT_ATTACKS, "block"))
        print(f"| {requests} | {without:.1f} s | {block:.1f} s | {ran} | {block / without:.2f} |", flush=True)
    print("\n| requests | a test that misses, to its end | ended at the miss | ratio |\n|---|---|---|---|")
    for requests in map(int, arguments.requests.split(",")):
        whole, ended = seconds_of_a_miss(arguments.cache, requests)
        print(f"| {requests} | {whole:.1f} s | {ended:.1f} s | {ended / whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
