"""What earlier requests cost a job: none, 1,000 of which a run looks at some, and 1,000 of which it looks at all.

    python -m bench.history --sample FOLDER [--earlier 1000] [--all]

FOLDER is what `unlearnd sample FOLDER` makes. The earlier requests are texts of people whom the model has never seen:
texts that were unlearned are to look like them. All runs forget the same three people, one after the other. CPU seconds
are counted, because they are the same beside other work.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import machine
from worker.demo.people import people
from worker.engine.options import Options
from worker.engine.unlearn import unlearn

HEADER = "| earlier requests | EL in full | ended | epochs | CPU seconds | of the first |\n|---|---|---|---|---|---|"
WITHOUT_LIMIT, GROUP = 1_000_000, 80


def read(path: Path) -> list[str]:
    """The texts of a JSONL file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def run(folder: Path, earlier: list[str], options: Options) -> tuple[object, int, float]:
    """(how it ended, its epochs, its CPU seconds) of a run on the sample model."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    forget, retain, heldout = (read(folder / f"{name}.jsonl") for name in ("request", "retain", "heldout"))
    started = time.process_time()
    result = unlearn(model, tokenizer, forget, retain, heldout, options, earlier_texts=earlier)
    return result.report["reason"] or "passed", len(result.history), time.process_time() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True)
    parser.add_argument("--earlier", type=int, default=1000)
    parser.add_argument("--all", action="store_true", help="also a run that looks at all, as every run once did")
    arguments = parser.parse_args()
    options = Options.from_mapping(json.loads((arguments.sample / "policy.json").read_bytes()))
    groups = (people(GROUP, seed) for seed in itertools.count(100))  # there are few names in each
    earlier = [person.text for person in itertools.islice(itertools.chain.from_iterable(groups), arguments.earlier)]
    runs = [([], options.earlier_sample), (earlier, options.earlier_sample)]
    runs += [(earlier, WITHOUT_LIMIT)] if arguments.all else []
    print(f"{machine()}\n\n{HEADER}", flush=True)
    first = 0.0
    for texts, sample in runs:
        ended, epochs, seconds = run(arguments.sample, texts, dataclasses.replace(options, earlier_sample=sample))
        first = first or seconds
        exact = "all" if sample == WITHOUT_LIMIT else min(len(texts), sample)
        print(f"| {len(texts)} | {exact} | {ended} | {epochs} | {seconds:.0f} | x {seconds / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
