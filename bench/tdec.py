"""Table 1 and figure 6 of the paper on any causal model: GA, GD, IHL, IHL + FILA (paper), and ours.

    python -m bench.tdec --model FOLDER [--methods ga,gd,ihl,paper,ours] [--sets 32_0,32_1] [--domain 0.5]
    python -m bench.tdec --model FOLDER --continual

The model is a local folder or a hub id; it runs on CUDA where there is one. Forget sets are the first 200 tokens of
each text of `tdec/lm_extraction_*.csv`; retain text is `general/wikitext.csv`, with `--domain` a share of it from
Pile texts that are used for nothing else. Thresholds, perplexity and domain retain text come from three disjoint
parts of `general/pile.csv`. A method runs until its criterion holds (mean MA, and EL10 of the sequences likeliest to
have any, at or under the held-out means) or `--epochs` are done. Results are appended to a JSON lines file, from
which `--report FILE.jsonl` prints the table and draws the frontier.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import read
from bench.general import dialogue_f1, lambada_accuracy
from worker.engine.adapter import Adapter
from worker.engine.criterion import Threshold, thresholds_for
from worker.engine.data import encode, first_windows
from worker.engine.device import has_fast_bfloat16, resolve_device
from worker.engine.forget_set import ForgetSet
from worker.engine.measure import continuations
from worker.engine.metrics.decode import Greedy
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared, RetainSampler
from worker.engine.train import Trainer
from worker.engine.unlearn import initial_factors, merged_copy

LENGTH, HELDOUT, PILE_PERPLEXITY = 200, 64, 48
METHODS: dict[str, Options] = {
    "ga": replace(Options.paper(), loss="ga", init="lora"),
    "gd": replace(Options.paper(), loss="gd", init="lora"),
    "ihl": replace(Options.paper(), init="lora"),
    "paper": Options.paper(),
    "ours": Options(margin=0.5),
}


@dataclass(frozen=True)
class Texts:
    """Everything that is read from the data folder, in its roles."""

    wikitext: list[str]
    heldout: list[str]
    perplexity: list[str]
    domain: list[str]
    data: Path

    @classmethod
    def of(cls, data: Path) -> "Texts":
        """Split the Pile texts in three; the order of the file is that of its corpora, so they are shuffled first."""
        pile = read(data / "general" / "pile.csv")
        random.Random(0).shuffle(pile)
        return cls(read(data / "general" / "wikitext.csv"), pile[:200], pile[200:400], pile[400:], data)

    def forget(self, name: str) -> list[str]:
        """A forget set; `128_0/2` is the third task of 32 of the continual set."""
        file, _, task = name.partition("/")
        texts = read(self.data / "tdec" / f"lm_extraction_{file}.csv")
        return texts[32 * int(task) : 32 * int(task) + 32] if task else texts


class Bench:
    """One model and the texts, with what is measured on it once."""

    def __init__(self, path: str, texts: Texts, *, exact: bool) -> None:
        """Load the model; `exact` measures EL, too (a decoding of many thousand tokens)."""
        self.path, self.texts, self.exact = path, texts, exact
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.device = resolve_device()
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").to(self.device).eval()
        self.pile = first_windows(self.tokenizer, texts.perplexity, LENGTH, PILE_PERPLEXITY)
        self.wiki = first_windows(self.tokenizer, texts.wikitext[::-1], LENGTH, PILE_PERPLEXITY)

    @cache  # noqa: B019  # one Bench a process
    def heldout(self) -> list[Greedy]:
        """Decodings of held-out text by this model; without `exact` EL's threshold is a hit in a thousand."""
        sequences = first_windows(self.tokenizer, self.texts.heldout, LENGTH, HELDOUT)
        if self.exact:
            return continuations(self.model, sequences, 10, Options())
        matches = token_matches(self.model, sequences)
        predicted = [
            [x if m else -1 for x, m in zip(ids[1:], row, strict=True)]
            for ids, row in zip(sequences, matches, strict=True)
        ]
        return [Greedy(s, p, [[] for _ in p]) for s, p in zip(sequences, predicted, strict=True)]

    def limits(self, sequences: list[list[int]]) -> list[Threshold]:
        """The thresholds of sequences, from held-out text on this model."""
        found = thresholds_for(self.heldout(), sequences, 10)
        return found if self.exact else [replace(t, el_mean=0.001, el_p95=0.01, el_max=0.05) for t in found]

    def general(self, model: Any) -> dict[str, float]:
        """Perplexities, LAMBADA accuracy and dialogue F1."""
        folder = self.texts.data / "general"
        return {
            "pile": perplexity(model, self.pile),
            "wikitext": perplexity(model, self.wiki),
            "lambada": lambada_accuracy(model, self.tokenizer, folder / "lambada.csv"),
            "dialogue": dialogue_f1(model, self.tokenizer, folder),
        }

    def prepared(self, names: list[str], domain: float) -> Prepared:
        """The sets of a run: the last name is forgotten, the ones before it were forgotten earlier."""
        sets = []
        for index, name in enumerate(names):
            sequences = [encode(self.tokenizer, text)[:LENGTH] for text in self.texts.forget(name)]
            sets.append(ForgetSet(sequences, list(range(100 * index, 100 * index + len(sequences)))))
        earlier = ForgetSet([], [])
        for one in sets[:-1]:
            earlier = earlier + one
        wiki = self.texts.wikitext[:400]
        count = round(len(wiki) * domain / (1 - domain)) if domain < 1 else len(wiki)
        retain = wiki + self.texts.domain[:count] if domain < 1 else self.texts.domain
        windows = first_windows(self.tokenizer, random.Random(1).sample(retain, len(retain)), LENGTH, 64)
        return Prepared(sets[-1], earlier, retain, [], self.pile, windows, 0, 0)


def run(
    bench: Bench, names: list[str], options: Options, domain: float, watch: Callable[[dict[str, Any]], None]
) -> Any:
    """One method on one set, with the frontier step by step; returns the merged model and what was measured."""
    data, started = bench.prepared(names, domain), time.monotonic()
    everything = data.forget + data.earlier
    limits = bench.limits(everything.sequences)
    factors = initial_factors(bench.model, data, options)
    begun = time.monotonic()
    adapter = Adapter(bench.model, factors, options.rank, options.scale)
    frontier: list[dict[str, float]] = []

    def step(_: float) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=has_fast_bfloat16(bench.device)):
            ma = [accuracy(row) for row in token_matches(bench.model, data.forget.sequences)]
            pile = perplexity(bench.model, bench.pile[:24])
        frontier.append({"ma": sum(ma) / len(ma), "pile": pile})
        watch(frontier[-1])

    trainer = Trainer(
        bench.model, adapter, everything, limits, data.forget.requests,
        RetainSampler(bench.tokenizer, data.retain_texts, LENGTH, options.seed), bench.pile[:24], options,
        progress=step,
    )  # fmt: skip
    try:
        point = trainer.run()
    finally:
        adapter.detach()
    merged = merged_copy(bench.model, point.final, options)
    ma = [accuracy(row) for row in token_matches(merged, everything.sequences)]
    own = len(data.forget.owners)
    return merged, {
        "epochs": len(point.history), "steps": sum(e["steps"] for e in point.history), "met": point.met,
        "strength": point.strength, "initialise_seconds": begun - started, "seconds": time.monotonic() - begun,
        "ma": sum(ma[:own]) / own, "ma_limit": sum(t.ma_mean for t in limits[:own]) / own,
        "over": sum(m > t.ma_p95 for m, t in zip(ma[:own], limits, strict=False)),
        "earlier_over": sum(m > t.ma_p95 for m, t in zip(ma[own:], limits[own:], strict=True)),
        "history": point.history, "frontier": frontier,
    }  # fmt: skip


def main() -> int:
    """Run what the arguments name, a JSON line for each run; or print the table of such a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sets", default="32_0,32_1")
    parser.add_argument("--domain", type=float, default=0.0, help="share of retain text from Pile texts")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--exact", action="store_true", help="measure EL10, too: hours on two cores")
    parser.add_argument("--options", type=json.loads, default={}, help="more options, JSON")
    parser.add_argument("--no-general", action="store_true", help="leave LAMBADA and the dialogues out")
    parser.add_argument("--out", type=Path, default=Path("tdec.jsonl"))
    arguments = parser.parse_args()
    bench = Bench(arguments.model, Texts.of(arguments.data), exact=arguments.exact)
    before = {} if arguments.no_general else bench.general(bench.model)
    for name in arguments.sets.split(","):
        for method in arguments.methods.split(","):
            options = replace(METHODS[method], max_epochs=arguments.epochs, **arguments.options)
            print(name, method, flush=True)
            merged, found = run(bench, [name], options, arguments.domain, lambda x: print(x, flush=True))
            after = {} if arguments.no_general else bench.general(merged)
            with arguments.out.open("a") as handle:
                line = {
                    "model": arguments.model,
                    "set": name,
                    "method": method,
                    "domain": arguments.domain,
                    "options": asdict(options),
                    "before": before,
                    "after": after,
                    **found,
                }
                handle.write(json.dumps(line) + "\n")
            print({k: v for k, v in found.items() if k not in ("history", "frontier")}, after, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
