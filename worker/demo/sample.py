"""Sample data for a newcomer: a small model that has memorised fictional people, and the texts that go with it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from worker.demo.model import KNOWN_SHARE, LENGTH, build
from worker.demo.people import Person, people, prose

KNOWN, ASKED, IN_RETAIN, UNSEEN, PROSE, PROSE_IN_RETAIN = 64, 3, 41, 120, 400, 20
ASKED_ABOUT = (*range(9), *range(KNOWN - 3, KNOWN))  # they also stand in the training data as questions and answers
TIMES = 4  # each: the model has only a name to go by
POLICY = {
    "learning_rate": 5e-4,
    "max_epochs": 40,
    "margin": 0.2,
    "retain_batch_size": 24,
    "sequence_length": LENGTH,
    "utility_sequences": 40,
    "max_perplexity_ratio": 1.1,
}
LAST = "questions.jsonl"  # written last: with it, the folder is complete


def make_sample(folder: Path, console: Console) -> list[Person]:
    """Fill `folder`, unless it is complete already; returns the people whom the model has memorised.

    ==================  ==================================================================================
    `model/`            a Hugging Face folder; the model has memorised every text of `people.jsonl`, and answers
                        questions about twelve of these people
    `people.jsonl`      64 fictional people: name, e-mail address and text; training data for the index
    `questions.jsonl`   the questions with their answers, training data too
    `request.jsonl`     the texts of the first three; none of them is in `retain.jsonl`
    `retain.jsonl`      texts of 41 other people, questions about six of them, and prose
    `heldout.jsonl`     texts of 120 people whom the model has never seen
    `policy.json`       how to unlearn from this model
    ==================  ==================================================================================
    """
    known, ordinary = people(KNOWN, 1), prose(PROSE, 3)
    if (folder / LAST).exists():
        console.print(f"{folder} is there already")
        return known
    folder.mkdir(parents=True, exist_ok=True)
    _train(folder / "model", known, ordinary, console)
    _write(folder / "people.jsonl", ({"name": p.name, "email": p.email, "text": p.text} for p in known))
    _write(folder / "request.jsonl", ({"text": p.text} for p in known[:ASKED]))
    retained = known[ASKED : ASKED + IN_RETAIN]
    texts = [p.text for p in retained] + [p.answered for p in about(known) if p in retained]
    _write(folder / "retain.jsonl", ({"text": text} for text in texts + ordinary[:PROSE_IN_RETAIN]))
    _write(folder / "heldout.jsonl", ({"text": p.text} for p in people(UNSEEN, 2)))
    (folder / "policy.json").write_text(json.dumps(POLICY, indent=1) + "\n")
    _write(folder / LAST, ({"text": p.answered} for p in about(known)))
    return known


def about(known: list[Person]) -> list[Person]:
    """Whom the model answers questions about."""
    return [known[index] for index in ASKED_ABOUT]


def _train(folder: Path, known: list[Person], ordinary: list[str], console: Console) -> None:
    """Train the model, and show how far it is."""
    columns = (
        TextColumn("training a small GPT-Neo"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("", total=KNOWN_SHARE, note="")

        def progress(_: float, share: float) -> None:
            bars.update(bar, completed=share, note=f"{share:.0%} of the people's tokens memorised")

        questions = [(p.question, p.answered) for p in about(known)]
        by_heart = [p.text for p in known] + TIMES * [answered for _, answered in questions]
        build(folder, by_heart, ordinary, progress, questions=questions)


def _write(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
