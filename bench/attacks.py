"""What the attacks cost: the same job without attacks, and with every attack set to block.

    python -m bench.attacks --cache FOLDER [--requests 1,16,40]

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
from worker.engine.options import DEFAULT_ATTACKS


def seconds(cache: Path, requests: int, attacks: dict[str, str]) -> tuple[float, int]:
    """How long a job takes, and how many attacks it ran."""
    model, tokenizer = trained(cache, "known", KNOWN, None)
    started = time.monotonic()
    retain = [*KNOWN[requests:][:24], *PROSE[:20]]
    options = replace(OPTIONS, **METHODS["ihl"], attacks=attacks)  # type: ignore[arg-type]  # values of many types
    result = unlearn(model, tokenizer, KNOWN[:requests], retain, HELDOUT, options)
    attacked = result.report["attacks"]
    assert isinstance(attacked, list)
    return time.monotonic() - started, sum(attack["status"] == "RUN" for attack in attacked)


def main() -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("bench-output/forgetting"))
    parser.add_argument("--requests", default="1,16,40")
    arguments = parser.parse_args()
    print(f"Machine: {machine()}, torch {torch.__version__}.\n")
    print(
        "| requests | job without attacks | every attack at block | attacks that ran | ratio |\n|---|---|---|---|---|"
    )
    for requests in map(int, arguments.requests.split(",")):
        without, _ = seconds(arguments.cache, requests, {})
        block, ran = seconds(arguments.cache, requests, dict.fromkeys(DEFAULT_ATTACKS, "block"))
        print(f"| {requests} | {without:.1f} s | {block:.1f} s | {ran} | {block / without:.2f} |", flush=True)


if __name__ == "__main__":
    main()
