"""TOFU: invented authors are forgotten; beside it a model that was trained without them, and every method.

    pip install --group bench  # pip 25.1 or newer
    python -m bench.tofu --model FOLDER [--data FOLDER] [--forget 2] [--retain 150] [--rates 2e-4,1e-3] [--methods ...]
    python -m bench.tofu --report tofu.jsonl

The authors to forget are the first of TOFU's forget10: twenty are all of it; ten and two have the sizes of forget05 and
forget01. The model learns the questions of these and of `--retain` other authors, all weights, `--epochs` times; the
control those of the others alone. Distillation has the model as its base. Twenty more authors are unseen: the questions
of ten are the held-out file, and membership is compared with the others'. Few authors and few `--questions` make it
short. Each method is run once with each of `--rates`, one budget for all. The table has the best run of each by the
harmonic mean of utility and 1 - D (D: the Kolmogorov-Smirnov distance of the truth ratios from the control's).
"""

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, TypeAlias

import torch
from transformers import AutoTokenizer

from bench.data import machine, printed_progress, some
from bench.memorise import began_from, conversation, folder_name, loaded, memorise
from bench.tofu_figures import (
    Question,
    extraction_strength,
    forget_quality,
    membership,
    near_one,
    privacy_leakage,
    truth_ratios,
    utility,
)
from worker.engine import Options, unlearn
from worker.engine.data import encode
from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.types import CausalLM, Tokenizer

SETTING = ("model", "data", "forget", "retain", "questions", "epochs", "policy")  # runs that differ are not compared
Row: TypeAlias = dict[str, object]
OF_AN_AUTHOR, UNSEEN, LENGTH = 20, 10, 160  # questions; authors, twice; tokens
MOST_FORGOTTEN = 20  # authors: forget10
METHODS: dict[str, Mapping[str, object]] = {
    "ihl": {},  # the whole default run
    "ihl_alone": {"adaptive": False},
    "distil": {"loss": "distil"},
    **{loss: {"loss": loss, "init": "lora"} for loss in ("gd", "kl", "npo", "simnpo", "altpo", "undial", "wga", "rmu")},
}
COLUMNS = {
    "p_value": "forget quality (p)",
    "distance": "D",
    "utility": "model utility",
    "truth_ratio": "truth ratio",
    "strength": "ES",
    "leakage": "privacy leakage %",
    "rate": "rate",
    "reason": "ended",
    "seconds": "s",
}


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a run, by what becomes of them."""

    forget: list[Question]
    retain: list[Question]
    heldout: list[Question]
    unseen: list[Question]
    kept: list[Question]
    real: list[list[Question]]


def read(path: Path) -> list[Question]:
    """The questions of a JSON lines file; where there is no other wording, the answer itself stands for it."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        Question(
            row["question"],
            row["answer"],
            row.get("paraphrased_answer", row["answer"]),
            row.get("perturbed_answer", []),
        )
        for row in rows
    ]


def load(folder: Path, forget: int, retain: int, questions: int) -> Questions:
    """The questions of so many authors to forget and to retain; no more than `questions` of each kind are asked."""
    retained, forgotten = read(folder / "retain90.json"), read(folder / "forget05_perturbed.json")
    most, unseen = len(retained) // OF_AN_AUTHOR - 2 * UNSEEN, UNSEEN * OF_AN_AUTHOR
    if not (0 < retain <= most and 0 < forget <= min(MOST_FORGOTTEN, len(forgotten) // OF_AN_AUTHOR)):
        raise SystemExit(f"--forget: 1 to {MOST_FORGOTTEN} authors; --retain: 1 to {most}")
    trained = retained[: retain * OF_AN_AUTHOR]
    known = {q.question for q in trained}
    return Questions(
        forget=forgotten[: forget * OF_AN_AUTHOR],
        retain=trained,
        heldout=retained[-2 * unseen : -unseen],
        unseen=retained[-unseen:],
        kept=[q for q in read(folder / "retain_perturbed.json") if q.question in known][:questions],
        real=[read(folder / f"{name}_perturbed.json")[:questions] for name in ("real_authors", "world_facts")],
    )


def learned(place: Path, folder: str, tokenizer: Tokenizer, questions: Sequence[Question], epochs: int) -> CausalLM:
    """The model that learned these questions; it is made once."""
    if not place.exists():
        model = loaded(folder)
        torch.manual_seed(0)
        texts = [encode(tokenizer, conversation(tokenizer, q.question, q.answer))[:LENGTH] for q in questions]
        shown = partial(mean_accuracy, model, texts[:OF_AN_AUTHOR])  # of all it takes as long as the training
        memorise(model, texts, target=1.0, rate=1e-4, epochs=epochs, measure=shown)
        model.save_pretrained(place.with_suffix(".new"))
        place.with_suffix(".new").rename(place)
    return loaded(place)


def both(given: argparse.Namespace, tokenizer: Tokenizer, questions: Questions) -> tuple[CausalLM, CausalLM]:
    """The model that learned all questions, and the control, which learned those to retain."""
    given.cache.mkdir(parents=True, exist_ok=True)
    model, control = (
        learned(
            given.cache / folder_name(name, given.model, given.epochs, *asked),
            given.model,
            tokenizer,
            asked,
            given.epochs,
        )
        for name, asked in (("known", [*questions.forget, *questions.retain]), ("control", questions.retain))
    )
    return model, control


def measure(model: CausalLM, tokenizer: Tokenizer, questions: Questions, control: Mapping[str, object] | None) -> Row:
    """Every figure; `control` has those of the retrained model."""
    ratios = truth_ratios(model, tokenizer, questions.forget)
    auc = membership(model, tokenizer, questions.forget, questions.unseen)
    beside = control or {"ratios": ratios, "auc": auc}
    p_value, distance = forget_quality(ratios, beside["ratios"])  # type: ignore[arg-type]  # a list, from JSON
    return {
        "ratios": ratios,
        "auc": auc,
        "p_value": p_value,
        "distance": distance,
        "truth_ratio": near_one(ratios),
        "strength": extraction_strength(model, tokenizer, questions.forget),
        "leakage": privacy_leakage(auc, float(beside["auc"])),  # type: ignore[arg-type]  # a number, from JSON
        "utility": utility(model, tokenizer, questions.kept, questions.real),
    }


def run(
    model: CausalLM, tokenizer: Tokenizer, questions: Questions, policy: Mapping[str, object], base: str
) -> tuple[CausalLM, Row]:
    """One method at one rate; the forget set are the questions with their answers."""

    def texts(group: Sequence[Question]) -> list[str]:
        return [conversation(tokenizer, q.question, q.answer) for q in group]

    options = Options.from_mapping({"sequence_length": LENGTH, "attacks": {}, "probe_samples": 0, **policy})
    started = time.monotonic()
    result = unlearn(
        copy.deepcopy(model),
        tokenizer,
        texts(questions.forget),
        texts(questions.retain),
        texts(questions.heldout),
        options,
        base_model=began_from(base, options),
        progress=printed_progress(),
    )
    seconds = time.monotonic() - started
    return result.model, {"reason": result.report["reason"] or "passed", "seconds": seconds}


def earlier(rows: Sequence[dict[str, Any]], method: str, setting: Mapping[str, str]) -> Row | None:
    """The last row of the control or of the model that learned, which no policy changes; it names its own commit."""

    def is_alike(row: dict[str, Any]) -> bool:
        return row["method"] == method and {**row["setting"], "policy": setting["policy"]} == setting

    return next((row for row in reversed(rows) if is_alike(row)), None)


def best(rows: Sequence[Row]) -> Row:
    """The run of a method that the table shows."""
    return max(rows, key=lambda row: harmonic_mean([1 - float(str(row["distance"])), float(str(row["utility"]))]))


def report(rows: Sequence[Row]) -> str:
    """The table: a row for each method, of the runs with the setting of the last one."""
    rows = [row for row in rows if row["setting"] == rows[-1]["setting"]]
    lines = [f"| method (runs) | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        shown = best(of_method)
        cells = [f"{value:.3g}" if isinstance(value := shown.get(name, ""), float) else str(value) for name in COLUMNS]
        lines.append(f"| {method} ({len(of_method)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tofu"))
    parser.add_argument("--cache", type=Path, default=Path("bench-output/tofu"))
    parser.add_argument("--forget", type=int, default=2, help="authors")
    parser.add_argument("--retain", type=int, default=150, help="authors")
    parser.add_argument("--questions", type=int, default=400, help="of each kind that measure utility")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", type=some(METHODS), default=",".join(METHODS))
    parser.add_argument("--rates", type=lambda rates: [*map(float, rates.split(","))], default="2e-4,1e-3")
    parser.add_argument("--policy", type=json.loads, default={}, help="JSON: fields of every method's policy")
    parser.add_argument("--out", type=Path, default=Path("bench-output/tofu.jsonl"))
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    if not given.model and not given.report:
        parser.error("--model or --report is needed")
    for library in () if given.report else ("scipy.stats", "rouge_score.rouge_scorer"):
        import_module(library)  # one that is missing is missed before hours of training
    return given


def main() -> None:
    """Learn, unlearn, measure; print the table."""
    given = arguments()
    if given.report:
        print(report([json.loads(line) for line in given.report.read_text().splitlines()]))
        return
    print(machine())  # and the commit of now
    questions = load(given.data, given.forget, given.retain, given.questions)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model, retrained = both(given, tokenizer, questions)
    rows: list[Row] = []
    setting = {name: str(getattr(given, name)) for name in SETTING}
    before = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []

    def add(method: str, one: CausalLM, more: Row) -> None:
        figures = measure(one, tokenizer, questions, rows[0] if rows else None)
        show({"method": method, **figures, **more, "setting": setting, "machine": machine()})

    def show(row: Row) -> None:
        rows.append({**row, "setting": setting})
        if row["setting"] != setting or row not in before:
            with given.out.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
        print({key: value for key, value in rows[-1].items() if key not in ("ratios", "setting")}, flush=True)

    given.out.parent.mkdir(parents=True, exist_ok=True)
    for method, one in (("control", retrained), ("known", model)):
        if row := earlier(before, method, setting):
            show(row)
        else:
            add(method, one, {})
    for method in given.methods:
        for rate in given.rates:
            field = "distil_learning_rate" if method == "distil" else "learning_rate"
            changed, ended = run(
                model, tokenizer, questions, {**METHODS[method], field: rate, **given.policy}, given.model
            )
            add(method, changed, {"rate": rate, **ended})
    print(f"\nMachine: {machine()}, torch {torch.__version__}.\n\n{report(rows)}")


if __name__ == "__main__":
    main()
