"""What a model still knows of people whom it has unlearned, by every method and every attack, beside a control.

    python -m bench.forgetting --cache FOLDER [--sets 0,1,2] [--methods ihl,distil,...] [--rates 2e-4,1e-3] \
        [--seeds 0,1,2,3,4]
    python -m bench.forgetting --cache FOLDER --model FOLDER --data FOLDER [--asking 8] [--options JSON]
    python -m bench.forgetting --report forgetting.jsonl [--plot forgetting.png]

A demo-sized GPT-Neo learns 64 invented people by heart. Of these, 16 (`--asking`) ask: three sets, drawn by seed. The
control is the same model, trained without them. The retain file has 24 of the other people and 20 paragraphs of prose,
so that nobody mentions the rest. The held-out file has 160 people whom no model has seen; the attacks compare with 100
more. `Relearned` is 50 steps of ordinary fine-tuning (all weights, AdamW, 5e-4, batches of 16) on the people who did
not ask, and on prose. `Probes answered` is the share of probes whose secret is said, greedily or in 20 samples: those
that the engine makes of their texts, and all that stands before the first number of each; `answered then` is that after
these steps, greedily. `Attacks failed` is how many tell the people from unseen ones, as the certificate has it; what an
attack gives for unseen people stands in the file of rows alone.

With `--rates` each method is run at each of them, one budget for all. The table has one run of a method on a set: of
those that met the criterion the one of the least held-out perplexity; if none did, the one of the lowest MA. With
`--seeds` each method is run with each seed, and the control trained with each. Then a row is the mean over sets and
seeds, and below the rows stand the lowest and the highest values of the controls of each set. (Of a pretrained model a
seed draws the order of the batches alone.)

With `--model` a pretrained model learns the people instead, and is the base of distillation; the prose is WikiText,
`other text` is the perplexity of Pile texts, and fine-tuning has the rate at which the people were learned (5e-5): 5e-4
ruins such a model. The report is of the runs with the model, the number who ask and the options of the last one.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig

from bench.attacked import attacked
from bench.data import machine, read, some
from bench.forgetting_plot import plot
from bench.memorise import began_from, fine_tuned, loaded, taught
from worker.demo.model import LENGTH, build, model_config
from worker.demo.people import people, prose
from worker.engine import Options, unlearn
from worker.engine.attacks import Subject
from worker.engine.data import encode
from worker.engine.identifiers import NUMBER
from worker.engine.made_probes import MOST_MADE, made_probes
from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.metrics.perplexity import perplexity
from worker.engine.metrics.token_scores import token_scores
from worker.engine.probes import Probe, answers
from worker.engine.saying import Texts
from worker.engine.types import CausalLM, Tokenizer

KNOWN = [person.text for person in people(64, 11)]
PROSE = prose(400, 3)
OTHER_PROSE = [text for text in prose(10**6, 3) if text not in set(PROSE)][:60]
UNSEEN = [person.text for person in people(260, 22)]
HELDOUT, COMPARED = UNSEEN[:160], UNSEEN[160:]
SEEDS = (101, 102, 103)
MENTIONED, FRESH_RATE = 24, 5e-4  # the rate of fine-tuning a model of ours
OPTIONS = Options(
    learning_rate=5e-4,
    max_epochs=40,
    margin=0.2,
    retain_batch_size=24,
    sequence_length=LENGTH,
    utility_sequences=40,
    max_perplexity_ratio=1.05,
    attacks={},
)
DEFAULTS: Mapping[str, object] = {"learning_rate": 2e-4, "margin": 1.0, "retain_batch_size": None, "max_epochs": 20}
METHODS: dict[str, Mapping[str, object]] = {
    "ihl": DEFAULTS,
    "ihl_pissa": {**DEFAULTS, "init": "pissa"},  # all rows count alike
    "ihl_lora": {**DEFAULTS, "init": "lora"},
    "ihl_alone": {"adaptive": False},  # one rate, and retain text alone
    **{loss: {"loss": loss, "init": "lora"} for loss in ("gd", "kl", "npo", "simnpo", "altpo", "undial", "wga", "rmu")},
    "distil": {"loss": "distil", "retain_batch_size": 16},
}
ALL_METHODS = ("known", "control", *METHODS)
COLUMNS = {
    "ma": "MA", "top_five": "true token in the top five", "sampled": "leak@1000", "extraction_strength": "ES",
    "exposure": "exposure", "answered": "probes answered",
    "membership_loss": "AUC loss", "membership_min_k": "AUC min-k", "membership_min_k_pp": "AUC min-k++",
    "prompts": "other prompts", "failed": "attacks failed", "quantised": "rounded, worst",
    "relearned_people": "relearned: people", "relearned_prose": "relearned: prose",
    "back_people": "answered then: people", "back_prose": "answered then: prose",
    "mentioned": "others in retain", "unmentioned": "others nobody named",
    "perplexity": "held-out x", "prose": "other text x", "seconds": "s",
}  # fmt: skip


def sequences(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts, one window each."""
    return [encode(tokenizer, text)[:LENGTH] for text in texts]


def trained(
    cache: Path,
    name: str,
    texts: Sequence[str],
    tokenizer: Tokenizer | None,
    config: Callable[[int], PretrainedConfig] = model_config,
    seed: int = 0,
) -> tuple[CausalLM, Tokenizer]:
    """The model that knows these texts by heart; trained at its first use."""
    folder = cache / name
    if not (folder / "tokenizer.json").exists():
        build(folder, texts, PROSE, lambda *_: None, tokenizer, config, seed=seed)
    return loaded(folder), AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Setting:
    """Which model learns the people, how many of them ask, and what ordinary text there is."""

    cache: Path
    pretrained: str | None = None
    asking: int = 16
    ordinary: Sequence[str] = tuple(PROSE)
    other: Sequence[str] = tuple(OTHER_PROSE)
    options: Mapping[str, object] = field(default_factory=dict)

    def learned(
        self, name: str, texts: Sequence[str], tokenizer: Tokenizer | None, seed: int = 0
    ) -> tuple[CausalLM, Tokenizer]:
        """The model that knows these texts by heart."""
        name = f"{name}-seed{seed}" if seed else name
        if self.pretrained:
            return taught(self.cache, name, texts, self.pretrained, LENGTH, seed)
        return trained(self.cache, name, texts, tokenizer, seed=seed)

    def split(self, number: int) -> tuple[list[str], list[str]]:
        """The texts of the people who ask, of a set, and of the others."""
        asked = set(random.Random(SEEDS[number]).sample(range(64), self.asking))
        return [KNOWN[i] for i in sorted(asked)], [text for i, text in enumerate(KNOWN) if i not in asked]


def measure(model: CausalLM, tokenizer: Tokenizer, parent: CausalLM, number: int, setting: Setting) -> dict[str, float]:
    """Every figure of a model about the people who asked, and about the others."""
    asking, staying = setting.split(number)
    forget, others = sequences(tokenizer, asking), sequences(tokenizer, staying)
    unseen, ordinary = sequences(tokenizer, COMPARED), sequences(tokenizer, setting.ordinary)
    other = sequences(tokenizer, setting.other)
    records = [(text, request) for request, text in enumerate(asking)]
    probes = made_probes(tokenizer, records, Texts(COMPARED), MOST_MADE, random.Random(0))
    numbers = [(match, request) for text, request in records if (match := NUMBER.search(text))]
    probes += [Probe(match.string[: match.start()], match.group(), request) for match, request in numbers]

    def answered(tuned: CausalLM, samples: int) -> float:
        how = replace(OPTIONS, probe_samples=samples, seed=1)  # not the job's
        given = answers(tuned, tokenizer, probes, how, otherwise=False)
        return sum(map(bool, given)) / len(probes)

    how: dict[str, Any] = {} if setting.pretrained else {"rate": FRESH_RATE, "bfloat16": False}
    relearned = {name: fine_tuned(model, on, **how) for name, on in (("people", others), ("prose", ordinary))}
    ranks = [scores.rank < 5 for scores in token_scores(model, forget)]
    return attacked(Subject(model, tokenizer, forget, unseen, others)) | {
        "ma": mean_accuracy(model, forget),
        "top_five": sum(float(rank.double().mean()) for rank in ranks) / len(ranks),
        "answered": answered(model, OPTIONS.probe_samples),
        **{f"relearned_{name}": mean_accuracy(tuned, forget) for name, tuned in relearned.items()},
        **{f"back_{name}": answered(tuned, 0) for name, tuned in relearned.items()},
        "mentioned": mean_accuracy(model, others[:MENTIONED]),
        "unmentioned": mean_accuracy(model, others[MENTIONED:]),
        "perplexity": perplexity(model, unseen) / perplexity(parent, unseen),
        "prose": perplexity(model, other) / perplexity(parent, other),
    }


def run(setting: Setting, number: int, method: str, rate: float | None, seed: int) -> dict[str, object]:
    """One run: a method on a set, at its own learning rate or at this one."""
    parent, tokenizer = setting.learned("known", KNOWN, None)
    (forget, others), started = setting.split(number), time.monotonic()
    criterion: bool | None = None
    steps: list[float] = []
    if method == "known":
        model = parent
    elif method == "control":
        model, _ = setting.learned(f"control-{number}-{setting.asking}", others, tokenizer, seed)
    else:
        retain = [*others[:MENTIONED], *setting.ordinary[:20]]
        chosen = {**METHODS[method], **setting.options, "seed": seed}
        options = replace(OPTIONS, **chosen)  # type: ignore[arg-type]  # values of many types
        if rate is not None:
            options = replace(options, learning_rate=rate, distil_learning_rate=rate)
        base = began_from(setting.pretrained, options)
        result = unlearn(parent, tokenizer, forget, retain, HELDOUT, options, base_model=base)
        model, criterion = result.model, result.report["reason"] != "criterion_missed"
        steps = [entry["steps"] for entry in result.history]
    seconds = time.monotonic() - started
    return {
        "setting": [setting.pretrained, setting.asking, dict(setting.options)],
        "set": number,
        "method": method,
        "rate": rate,
        "seed": seed,
        "criterion": criterion,
        "steps of epochs": steps,
        "seconds": seconds,
        "machine": machine(),
        **measure(model, tokenizer, parent, number, setting),
    }


def best_rows(path: Path) -> list[dict[str, Any]]:
    """The best run of each method on each set with each seed, in the order of the methods; of one rate the last one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [row for row in lines if row["setting"] == lines[-1]["setting"]]
    runs = list({(row["method"], row["set"], row.get("seed", 0), row["rate"]): row for row in lines}.values())
    runs.sort(
        key=lambda row: (row["criterion"] is False, row["ma"] if row["criterion"] is False else row["perplexity"])
    )
    of_sets: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in runs:
        of_sets.setdefault((row["method"], row["set"], row.get("seed", 0)), row)
    return sorted(of_sets.values(), key=lambda row: ALL_METHODS.index(row["method"]))


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: a row for each method, the mean over its rows; then what the controls span, and the machines."""
    table = [f"| method | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        table.append(f"| {method} ({len(of_method)}) | {_cells(of_method, mean)} |")
    for number in sorted({row["set"] for row in rows}):
        controls = [row for row in rows if (row["method"], row["set"]) == ("control", number)]
        if len(controls) > 1:
            table += [f"| controls, set {number}: {how.__name__} | {_cells(controls, how)} |" for how in (min, max)]
    return "\n".join([*table, "", *sorted({f"Runs on {row.get('machine', 'a machine unknown')}." for row in rows})])


def _cells(rows: Sequence[Mapping[str, float]], how: Callable[[list[float]], float]) -> str:
    """One value of each column; of older rows some have none."""
    columns = {name: [row[name] for row in rows if name in row] for name in COLUMNS}
    values = {name: how(column) if column else math.nan for name, column in columns.items()}
    return " | ".join(f"{value:.0f}" if name == "seconds" else f"{value:.3f}" for name, value in values.items())


def main() -> None:
    """Run the methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("bench-output/forgetting"))
    parser.add_argument("--sets", type=some(range(len(SEEDS))), default="0,1,2")
    parser.add_argument("--methods", type=some(ALL_METHODS), default=",".join(ALL_METHODS))
    parser.add_argument("--rates", type=lambda given: [*map(float, given.split(","))], default=[None])
    parser.add_argument("--seeds", type=lambda given: [*map(int, given.split(","))], default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench-output/forgetting.jsonl"))
    parser.add_argument("--model", help="a pretrained model: a local folder or a hub id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="WikiText and Pile, with --model")
    parser.add_argument("--asking", type=int, choices=range(1, 64 - MENTIONED), default=16, metavar="1..39")
    parser.add_argument("--options", type=json.loads, default={}, help="more options, JSON")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--plot", type=Path, help="with --report: draw what each method leaves")
    arguments = parser.parse_args()
    if arguments.report is None:
        print(machine())  # and the commit of now
        setting = Setting(arguments.cache, asking=arguments.asking, options=arguments.options)
        if arguments.model:
            wikitext, pile = (read(arguments.data / "general" / f"{name}.csv") for name in ("wikitext", "pile"))
            pile = random.Random(0).sample(pile, 60)
            setting = replace(setting, pretrained=arguments.model, ordinary=wikitext[:400], other=pile)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        for method in arguments.methods:
            rates = [None] if method in ("known", "control") else arguments.rates
            seeds = [0] if method == "known" else arguments.seeds
            for number, rate, seed in product(arguments.sets, rates, seeds):
                row = run(setting, number, method, rate, seed)
                with arguments.out.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    rows = best_rows(arguments.report or arguments.out)
    print(f"Machine: {machine()}, torch {torch.__version__}.\n\n{report(rows)}")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
