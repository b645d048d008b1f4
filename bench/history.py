"""What earlier requests cost a job: none, and 1,000, of which a run looks at some.

    python -m bench.history --sample FOLDER [--counts 0,1000]

FOLDER is what `unlearnd sample FOLDER` makes. The earlier requests are texts of people whom the model has never seen,
and which pass their verdicts on it, as texts that were unlearned do. All runs forget the same three people, one after
the other. CPU seconds are counted, because they are the same beside other work.
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
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.measure import measure_before
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import prepare
from worker.engine.unlearn import unlearn

HEADER = "| earlier requests | ended | epochs | CPU seconds | of the first |\n|---|---|---|---|---|"
GROUP = 80
SLACK = 0.02  # of MA, under the limit


def read(path: Path) -> list[str]:
    """The texts of a JSONL file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


class Sample:
    """The sample's model and texts."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Read the folder."""
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.texts = [read(folder / f"{name}.jsonl") for name in ("request", "retain", "heldout")]
        self.options = options

    def earlier(self, count: int) -> list[str]:
        """So many texts that pass on the model."""
        groups = (people(GROUP, seed) for seed in itertools.count(100))  # there are few names in each
        candidates = [
            person.text for group in itertools.islice(groups, 3 * count // (2 * GROUP) + 1) for person in group
        ]
        (forget, retain, heldout), few = self.texts, dataclasses.replace(self.options, earlier_sample=2)
        sets = {"earlier_texts": candidates, "earlier_request_ids": range(len(forget), len(forget) + len(candidates))}
        data = prepare(self.tokenizer, forget, range(len(forget)), retain, heldout, few, **sets)  # type: ignore[arg-type]  # a mapping of several types
        limits = measure_before(self.model, self.tokenizer, data, few).sequence_thresholds(data.earlier)
        ma = [accuracy(row) for row in token_matches(self.model, data.earlier.sequences)]
        el = extraction_likelihoods(self.model, data.earlier.sequences, limits, few)
        passing = dict.fromkeys(data.earlier.requests, True)
        for request, own_el, own_ma, limit in zip(data.earlier.request_ids, el, ma, limits, strict=True):
            passing[request] &= own_el <= limit.el_p95 and own_ma <= limit.ma_p95 - SLACK
        return [text for text, passes in zip(candidates, passing.values(), strict=True) if passes][:count]

    def run(self, earlier: list[str], options: Options) -> tuple[object, int, float]:
        """(how it ended, its epochs, its CPU seconds) of a run."""
        started = time.process_time()
        forget, retain, heldout = self.texts
        result = unlearn(self.model, self.tokenizer, forget, retain, heldout, options, earlier_texts=earlier)
        return result.report["reason"] or "passed", len(result.history), time.process_time() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True)
    parser.add_argument("--counts", default="0,1000")
    arguments = parser.parse_args()
    options = Options.from_mapping(json.loads((arguments.sample / "policy.json").read_bytes()))
    sample, counts = Sample(arguments.sample, options), list(map(int, arguments.counts.split(",")))
    earlier = sample.earlier(max(counts)) if max(counts) else []
    print(f"{machine()}\n\n{HEADER}", flush=True)
    first = 0.0
    for count in counts:
        ended, epochs, seconds = sample.run(earlier[:count], options)
        first = first or seconds
        row = f"| {count} | {ended} | {epochs} | {seconds:.0f} | x {seconds / first:.2f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
