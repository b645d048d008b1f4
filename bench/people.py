"""Invented people with private data (LUME), learned by heart by a chat model: what questions give before and after.

    python -m bench.people --model FOLDER --data FOLDER --wikitext FILE.csv [--cache FOLDER] [--people 32] [--asking 8]

The model learns biographies and five questions with their answers for each person, all weights, until it answers 19
of 20 questions about a dozen people. Half of the others' questions are in the retain file, with their biographies.
Whoever asks sends a biography and the five questions as probes. `Answered` is greedily, or in any of 20 samples, if
luck does not explain it; the questions are asked as plain text and in the chat template. Quantised models have rounded
weights in every linear module but the head. With `"loss": "distil"` in the policy the model is the base of the
reference. `--wordings` asks the model that learned them in each wording that a job tries, and unlearns nothing.
"""

import argparse
import copy
import hashlib
import json
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from bench.data import machine, printed_progress, read
from bench.memorise import began_from, conversation, fine_tuned, loaded, memorise
from worker.engine import Options, unlearn
from worker.engine.attacks.quantised import rounded
from worker.engine.data import encode, first_windows
from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.metrics.perplexity import perplexity
from worker.engine.probes import Probe, answers
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.wordings import fixed_parts, other_wordings

LENGTH, SAMPLES, UNSEEN = 160, 20, 60
ROUNDED = ("int8 per channel", "int4")
WORDINGS = ("own words", "as a request", "lower case", "without small words", "after another sentence")


@dataclass(frozen=True, slots=True)
class Person:
    """A biography, and questions with their answers."""

    text: str
    questions: list[tuple[str, str]]

    def probes(self, index: int) -> list[Probe]:
        """The questions as probes of a request."""
        return [Probe(question, answer, index) for question, answer in self.questions]


def load(folder: Path, people: int, asking: int) -> tuple[list[Person], list[Person], list[str]]:
    """The people who ask, the others, and biographies that no model has seen."""
    sides = {}
    for side in ("forget", "retain"):
        rows = map(json.loads, (folder / f"people_{side}.jsonl").read_text().splitlines())
        sides[side] = [Person(row["text"], [(qa["question"], qa["answer"]) for qa in row["qa"]]) for row in rows]
    others = people - asking
    unseen = [person.text for person in sides["retain"][others:]]
    return sides["forget"][:asking], sides["retain"][:others], unseen


def texts(tokenizer: Tokenizer, persons: Sequence[Person]) -> list[str]:
    """Biographies and conversations."""
    talks = [conversation(tokenizer, *qa) for person in persons for qa in person.questions]
    return [*(person.text for person in persons), *talks]


def answered(
    model: CausalLM, tokenizer: Tokenizer, persons: Sequence[Person], samples: int, *, otherwise: bool = False
) -> float:
    """The share of the questions that are answered, perhaps asked in words that nothing was trained on."""
    probes = [probe for index, person in enumerate(persons) for probe in person.probes(index)]
    if otherwise:
        probes = [
            replace(p, prompt=f"I need your help. {p.prompt.replace('What is', 'Please tell me')}") for p in probes
        ]
    options = Options(probe_samples=samples, seed=1)
    return sum(map(bool, answers(model, tokenizer, probes, options, otherwise=False))) / len(probes)


def learned(cache: Path, folder: str, persons: Sequence[Person]) -> tuple[CausalLM, Tokenizer]:
    """The model that knows these people by heart; it is made once."""
    place = cache / f"knows-{hashlib.sha256(repr([folder, *persons]).encode()).hexdigest()[:12]}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not place.exists():
        model = loaded(folder)
        sequences = [encode(tokenizer, text)[:LENGTH] for text in texts(tokenizer, persons)]
        known = random.Random(0).sample(list(persons), min(12, len(persons)))
        memorise(model, sequences, target=0.95, rate=1e-4, measure=lambda: answered(model, tokenizer, known, 0))
        model.save_pretrained(place.with_suffix(".new"))
        place.with_suffix(".new").rename(place)
    return loaded(place), tokenizer


def named(others: Sequence[Person]) -> Sequence[Person]:
    """Those of the others who stand in the retain file."""
    return others[: len(others) // 2]


def measure(
    model: CausalLM, tokenizer: Tokenizer, asking: Sequence[Person], others: Sequence[Person], wikitext: list[list[int]]
) -> dict[str, float]:
    """One column of the table."""
    figures = {}
    for name in ("float32", *ROUNDED):
        with nullcontext() if name == "float32" else rounded(model, name):
            figures[f"of those who asked, answered greedily, {name}"] = answered(model, tokenizer, asking, 0)
            figures[f"of those who asked, answered in {SAMPLES} samples, {name}"] = answered(
                model, tokenizer, asking, SAMPLES
            )
    tuned = fine_tuned(model, [encode(tokenizer, text)[:LENGTH] for text in texts(tokenizer, others)])
    biographies = [[encode(tokenizer, person.text)[:LENGTH] for person in group] for group in (asking, others)]
    return figures | {
        "of those who asked, answered in 20 samples, asked in other words": answered(
            model, tokenizer, asking, SAMPLES, otherwise=True
        ),
        "of those who asked, answered greedily after 50 steps on others' texts": answered(tuned, tokenizer, asking, 0),
        "of the others in the retain file, answered greedily": answered(model, tokenizer, named(others), 0),
        "of the others whom nobody named, answered greedily": answered(
            model, tokenizer, others[len(named(others)) :], 0
        ),
        "MA of those who asked": mean_accuracy(model, biographies[0]),
        "MA of the others": mean_accuracy(model, biographies[1]),
        "perplexity of WikiText": perplexity(model, wikitext),
    }


def print_wordings(model: CausalLM, tokenizer: Tokenizer, persons: Sequence[Person]) -> None:
    """How many questions are answered greedily in each wording."""
    probes = [probe for index, person in enumerate(persons) for probe in person.probes(index)]
    print(f"Machine: {machine()}, torch {torch.__version__}.\n\n| | answered, of {len(probes)} |\n|---|---|")
    fixed = fixed_parts(tokenizer)
    for place, name in enumerate(WORDINGS):
        worded = [replace(p, prompt=[p.prompt, *other_wordings(p.prompt, fixed)][place]) for p in probes]
        given = answers(model, tokenizer, worded, Options(probe_samples=0), otherwise=False)
        print(f"| {name} | {sum(map(bool, given))} |", flush=True)


def print_table(before: dict[str, float], after: dict[str, float]) -> None:
    """Two columns."""
    print(f"Machine: {machine()}, torch {torch.__version__}.\n\n| | before | after |\n|---|---|---|")
    for name in before:
        print(f"| {name} | {before[name]:.3f} | {after[name]:.3f} |")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("bench-output/people"))
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--asking", type=int, default=8)
    parser.add_argument("--policy", default="{}", help="JSON: fields of the policy")
    parser.add_argument("--wordings", action="store_true", help="only ask, in each wording")
    given = parser.parse_args()
    if not 0 < given.asking < given.people:
        parser.error("--asking: at least one, and fewer than --people")
    return given


def main() -> None:
    """Learn, unlearn, measure; print the table."""
    given = arguments()
    asking, others, unseen = load(given.data, given.people, given.asking)
    model, tokenizer = learned(given.cache, given.model, [*asking, *others])
    if given.wordings:
        print_wordings(model, tokenizer, [*asking, *others])
        return
    wikitext = first_windows(tokenizer, read(given.wikitext), LENGTH, 80)
    options = Options.from_mapping(
        {"sequence_length": LENGTH, "heldout_sequences": 30, "max_perplexity_ratio": 1.05, "attacks": {}}
        | json.loads(given.policy)
    )
    ordinary = random.Random(0).sample(read(given.wikitext)[200:], 60)
    retain = [*texts(tokenizer, named(others)), *ordinary]
    started = time.monotonic()
    result = unlearn(
        copy.deepcopy(model),
        tokenizer,
        [person.text for person in asking],
        retain,
        unseen[:UNSEEN],
        options,
        probes=[probe for index, person in enumerate(asking) for probe in person.probes(index)],
        base_model=began_from(given.model, options),
        progress=printed_progress(),
    )
    seconds = time.monotonic() - started
    print(f"{result.report['reason']}, {result.report['probes']}, {len(result.history)} epochs, {seconds:.0f} s\n")
    for entry in result.history:
        print({name: round(value, 4) for name, value in entry.items()})
    print_table(*(measure(one, tokenizer, asking, others, wikitext) for one in (model, result.model)))


if __name__ == "__main__":
    main()
