"""Table 1 and figure 6 of the paper on any causal model: GA, GD, IHL, IHL + FILA (paper), and ours.

    python -m bench.tdec --model FOLDER [--methods ga,gd,ihl,paper,ours] [--sets 32_0,32_1] [--domain 0.5]
    python -m bench.tdec --model FOLDER --continual [--methods ours]
    python -m bench.tdec --report tdec.jsonl --plot frontier.png

The model is a local folder or a hub id; it runs on CUDA where there is one. Forget sets are the first 200 tokens of
each text of `tdec/lm_extraction_*.csv`; retain text is `general/wikitext.csv`, with `--domain` a share of it from
Pile texts that are used for nothing else. Thresholds, perplexity and domain retain text come from three disjoint
parts of `general/pile.csv`; without `--exact` those of EL10 are lower bounds, from matches alone, which is stricter.
A method runs until its criterion holds (mean MA, and EL10 of the sequences likeliest to have any, at or under the
held-out means, and every sequence's own verdict) or `--epochs` are done. `--continual` forgets the four tasks of
128_0 one by one, each from the model that the one before left, which is held to the earlier ones, too. Results are
appended to a JSON lines file, from which `--report` prints the table and `--plot` draws the frontier.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import read
from bench.general import dialogue_f1, lambada_accuracy
from worker.engine.adapter import Adapter
from worker.engine.criterion import Threshold, thresholds_for
from worker.engine.data import encode, first_windows
from worker.engine.device import resolve_device
from worker.engine.forget_set import ForgetSet
from worker.engine.measure import continuations
from worker.engine.metrics.decode import Greedy
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared, RetainSampler
from worker.engine.train import Trainer
from worker.engine.unlearn import initial_factors, merged_copy

LENGTH, HELDOUT, PILE_PERPLEXITY, FRONTIER = 200, 64, 48, 16
TOP = 1.3  # of the frontier's picture
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

    @cached_property
    def heldout(self) -> list[Greedy]:
        """Decodings of held-out text by this model; without `exact` a continuation ends at its first mismatch."""
        sequences = first_windows(self.tokenizer, self.texts.heldout, LENGTH, HELDOUT)
        if self.exact:
            return continuations(self.model, sequences, 10, Options())
        return [_matched(ids, row) for ids, row in zip(sequences, token_matches(self.model, sequences), strict=True)]

    def limits(self, sequences: list[list[int]]) -> list[Threshold]:
        """The thresholds of sequences, from held-out text on this model."""
        return thresholds_for(self.heldout, sequences, 10)

    def on(self, model: Any) -> "Bench":
        """The same bench on another model, whose thresholds are its own."""
        other = copy.copy(self)
        other.model = model
        vars(other).pop("heldout", None)
        return other

    def general(self, model: Any, *, everything: bool = True) -> dict[str, float]:
        """Perplexities, and with `everything` LAMBADA accuracy and dialogue F1."""
        folder = self.texts.data / "general"
        found = {"pile": perplexity(model, self.pile), "wikitext": perplexity(model, self.wiki)}
        if everything:
            found["lambada"] = lambada_accuracy(model, self.tokenizer, folder / "lambada.csv")
            found["dialogue"] = dialogue_f1(model, self.tokenizer, folder)
        return found

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


def _matched(input_ids: list[int], matches: list[bool]) -> Greedy:
    """What the teacher-forced pass alone says of the continuations: as far as they match."""
    found: list[list[int]] = []
    for token, matched in zip(input_ids[:0:-1], matches[::-1], strict=True):
        found.append([token, *found[-1]] if matched and found else [token] if matched else [])
    predicted = [x if m else -1 for x, m in zip(input_ids[1:], matches, strict=True)]
    return Greedy(input_ids, predicted, found[::-1])


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
    start = perplexity(bench.model, bench.pile[:FRONTIER])

    def step(_: float) -> None:
        matches = token_matches(bench.model, data.forget.sequences)
        ma = [accuracy(row) for row in matches]
        el = [lower_bound(row, limit.n) for row, limit in zip(matches, limits, strict=False)]
        pile = perplexity(bench.model, bench.pile[:FRONTIER])
        over = sum(m > limit.ma_p95 for m, limit in zip(ma, limits, strict=False))
        frontier.append({"ma": sum(ma) / len(ma), "el": sum(el) / len(el), "over": over, "pile": pile})
        watch(frontier[-1])

    trainer = Trainer(
        bench.model, adapter, everything, limits, data.forget.requests,
        RetainSampler(bench.tokenizer, data.retain_texts, LENGTH, options.seed), bench.pile[:FRONTIER], options,
        progress=step,
    )  # fmt: skip
    try:
        point = trainer.run()
    finally:
        adapter.detach()
    merged = merged_copy(bench.model, point.final, options)
    ma = [accuracy(row) for row in token_matches(merged, everything.sequences)]
    own = len(data.forget.request_ids)
    return merged, {
        "epochs": len(point.history), "steps": sum(e["steps"] for e in point.history), "met": point.met,
        "strength": point.strength, "initialise_seconds": begun - started, "seconds": time.monotonic() - begun,
        "ma": sum(ma[:own]) / own, "ma_limit": sum(t.ma_mean for t in limits[:own]) / own,
        "over": sum(m > t.ma_p95 for m, t in zip(ma[:own], limits, strict=False)),
        "earlier_over": sum(m > t.ma_p95 for m, t in zip(ma[own:], limits[own:], strict=True)),
        "history": point.history, "frontier": frontier, "frontier_start": start,
    }  # fmt: skip


def report(lines: list[dict[str, Any]]) -> str:
    """Table 1 in Markdown: a row for each run."""
    head = "model", "set", "method", "epochs (steps)", "set criterion first held", "share", "EL10 at least", "MA, limit"
    ability = "MA over its p95", "Pile", "WikiText", "LAMBADA", "dialogue F1"
    table = ["| " + " | ".join((*head, *ability)) + " |", "|---" * (len(head) + len(ability)) + "|"]
    for line in lines:
        before, after, last = line["before"], line["after"], line["history"][-1]
        name = line["method"] + (f", {line['domain']:.0%} Pile" if line["domain"] else "")
        failed = f"{line['over']}" + (f", earlier {line['earlier_over']}" if "/" in line["set"] else "")
        cells = [
            Path(line["model"]).name, line["set"], name,
            f"{line['epochs']} ({line['steps']}){'' if line['met'] else ' not met'}", set_criterion(line),
            f"{line['strength']:.2f}", f"{last['el']:.4f}", f"{line['ma']:.3f}, {line['ma_limit']:.3f}", failed,
            *(f"{before[k]:.1f} -> {after[k]:.1f} (x {after[k] / before[k]:.3f})" for k in ("pile", "wikitext")),
            *(f"{before[k]:.3f} -> {after[k]:.3f}" if k in after else "" for k in ("lambada", "dialogue")),
        ]  # fmt: skip
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def set_criterion(line: dict[str, Any]) -> str:
    """The paper's own stop: the step at which the set's means first held, and Pile perplexity there, no verdict asked.

    EL is the lower bound from matches; a method that looks at whole epochs could have stopped at the epoch's end.
    """
    limits = line["history"][-1]
    for step, point in enumerate(line["frontier"], start=1):
        if point["ma"] <= limits["ma_limit"] and point["el"] <= limits["el_limit"]:
            return f"step {step}, Pile x {point['pile'] / line['frontier_start']:.3f}"
    return "never"


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Figure 6: mean MA of the forget set against Pile perplexity after / before, a dot for each step."""
    from matplotlib.figure import Figure

    panels = sorted({(line["model"], line["set"]) for line in lines})
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in (x for x in lines if (x["model"], x["set"]) == panel):
            label = line["method"] + (f", {line['domain']:.0%} Pile" if line["domain"] else "")
            ma = [point["ma"] for point in line["frontier"]]
            ratio = [point["pile"] / line["frontier_start"] for point in line["frontier"]]
            (drawn,) = axes.plot(ma, ratio, ".-", label=label, linewidth=1)
            axes.plot(line["ma"], line["after"]["pile"] / line["before"]["pile"], "*", color=drawn.get_color(), ms=14)
            axes.axvline(line["ma_limit"], color="0.6", linewidth=1, linestyle=":")
        axes.axhline(1, color="0.8", linewidth=1)
        axes.set(
            title=f"{Path(panel[0]).name}, {panel[1]}", xlabel="mean MA of the forget set (dotted: its limit)",
            ylabel="Pile perplexity after / before (star: the merged model)", yscale="log",
        )  # fmt: skip
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:.2f}")
        axes.set_ylim(top=min(axes.get_ylim()[1], TOP))  # beyond it a model is ruined, by how much is in the table
        axes.invert_xaxis()
        axes.legend()
    figure.savefig(path, dpi=110)


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local folder or a hub id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sets", default="32_0,32_1")
    parser.add_argument("--continual", action="store_true", help="the four tasks of 128_0, one after the other")
    parser.add_argument("--domain", type=float, default=0.0, help="share of retain text from Pile texts")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--exact", action="store_true", help="thresholds of EL10 from held-out text: half an hour more")
    parser.add_argument("--options", type=json.loads, default={}, help="more options, JSON")
    parser.add_argument("--no-general", action="store_true", help="leave LAMBADA and the dialogues out")
    parser.add_argument("--out", type=Path, default=Path("tdec.jsonl"))
    parser.add_argument("--report", type=Path, help="print the table of such a file")
    parser.add_argument("--plot", type=Path, help="with --report: draw the frontier")
    arguments = parser.parse_args()
    if not (arguments.model or arguments.report):
        parser.error("--model or --report")
    return arguments


def main() -> int:
    """Run what the arguments name, a JSON line for each run; or print the table of such a file."""
    arguments = arguments_of()
    if arguments.report:
        lines = [json.loads(line) for line in arguments.report.read_text().splitlines()]
        print(report(lines))
        if arguments.plot:
            plot([line for line in lines if "/" not in line["set"]], arguments.plot)
        return 0
    start = Bench(arguments.model, Texts.of(arguments.data), exact=arguments.exact)
    before = start.general(start.model, everything=not arguments.no_general)
    sets = [f"128_0/{task}" for task in range(4)] if arguments.continual else arguments.sets.split(",")
    for method in arguments.methods.split(","):
        bench = start
        options = replace(METHODS[method], max_epochs=arguments.epochs, **arguments.options)
        for index, name in enumerate(sets):
            print(name, method, flush=True)
            names = sets[: index + 1] if arguments.continual else [name]
            merged, found = run(bench, names, options, arguments.domain, lambda x: print(x, flush=True))
            line = {
                "model": arguments.model, "set": name, "method": method, "domain": arguments.domain,
                "options": asdict(options), "before": before,
                "after": start.general(merged, everything=not arguments.no_general), **found,
            }  # fmt: skip
            with arguments.out.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
            print({k: v for k, v in line.items() if k not in ("history", "frontier", "options")}, flush=True)
            if arguments.continual:
                bench = start.on(merged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
