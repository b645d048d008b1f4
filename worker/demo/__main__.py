"""`unlearnd demo`: the whole path on a sample model, over HTTP, on real PostgreSQL and Valkey."""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from service.audit.verify import verify
from service.cli.requests import watch
from service.client.answers import VersionAnswer
from service.client.http import Client
from service.explain import explained
from service.local.process import wait_until
from worker.demo.model import LENGTH
from worker.demo.people import Person, people
from worker.demo.plot import plot_ranks, plot_trajectory
from worker.demo.sample import ASKED, IN_RETAIN, KNOWN, POLICY, UNSEEN, about, make_sample
from worker.demo.serve import add_what_waits, stay
from worker.engine.attacks.exposure import number_ranks
from worker.engine.attacks.subject import Subject
from worker.engine.data import encode
from worker.engine.metrics import memorization
from worker.engine.types import CausalLM, Tokenizer

DISTIL = {"loss": "distil", "distil_steps": 120, "retain_batch_size": 16, "own_samples": 1024}
CANDIDATES = 1000  # random numbers beside each true one
console = Console(highlight=False)


class DemoFailed(Exception):
    """A step of the demo failed, or its result is not as promised."""


@contextmanager
def running_stack(data: Path, *roots: Path) -> Iterator[tuple[Client, str, Path]]:
    """Start `unlearnd up` as a user does, yield a client, its URL and key file, and stop it at the end.

    The stack may register models and corpora from `roots`.
    """
    shutil.rmtree(data, ignore_errors=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a SIGTERM stops the stack, too
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(data), "--port", "0"]
    folders = ":".join(map(str, roots))
    environment = {**os.environ, "UNLEARND_MODEL_ROOTS": folders, "UNLEARND_CORPUS_ROOTS": folders}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    endpoint = data / "endpoint.json"
    try:
        wait_until(lambda: endpoint.exists() or process.poll() is not None, 120)
        if not endpoint.exists():
            raise DemoFailed(f"the stack did not start; see {data / 'logs'}")
        address = json.loads(endpoint.read_text())
        key_file = Path(address["api_key_file"])
        client = Client(address["url"], key_file.read_text().strip())
        yield client, address["url"], key_file
        client.close()
    finally:
        process.terminate()
        process.wait(60)


def load(folder: Path) -> tuple[CausalLM, Tokenizer]:
    """Model and tokenizer, as anyone loads them."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def continued(model: CausalLM, tokenizer: Tokenizer, input_ids: Sequence[int], count: int) -> str:
    """What the model says next, greedily: `count` tokens at most."""
    prompt = torch.tensor([input_ids])
    with torch.no_grad():
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    text: str = tokenizer.decode(generated[0, len(input_ids) :], skip_special_tokens=True)
    return text


def complete(model: CausalLM, tokenizer: Tokenizer, person: Person) -> str:
    """The model's completion of the first third of the person's text."""
    ids = encode(tokenizer, person.text)
    return continued(model, tokenizer, ids[: len(ids) // 3], len(ids) - len(ids) // 3)


def answer(model: CausalLM, tokenizer: Tokenizer, person: Person) -> str:
    """What the model answers when somebody asks for the person's number."""
    return continued(model, tokenizer, encode(tokenizer, person.question), 20).split("\n")[0].partition(".")[0].strip()


def mean_accuracy(model: CausalLM, tokenizer: Tokenizer, persons: Sequence[Person]) -> float:
    """Mean MA over these people's texts."""
    return memorization.mean_accuracy(model, [encode(tokenizer, p.text)[:LENGTH] for p in persons])


def run(output: Path, sample: Path, *, serve: bool) -> None:
    """Do all of it; `sample` is the folder of the model and its texts. With `serve` the stack stays up.

    Raises:
        DemoFailed: A step failed, or its result is not as promised.
    """
    output.mkdir(parents=True, exist_ok=True)
    console.rule(f"1  a model that has memorised {KNOWN} fictional people")
    known = make_sample(sample, console)
    asked, others = known[:ASKED], known[ASKED:]
    with running_stack(output / "stack", sample) as (client, url, key_file):
        console.rule("2  the service: PostgreSQL, Valkey, API, control and compute workers")
        base, retain, heldout = (str(sample / name) for name in ("model", "retain.jsonl", "heldout.jsonl"))
        client.add_model("demo", base, retain, heldout, POLICY | DISTIL)
        console.rule(f"3  {ASKED} people ask to be forgotten: one job, from request to publication")
        submitted = [client.submit("demo", [p.text], reference=f"DEMO-{n}") for n, p in enumerate(asked, 1)]
        ended = [watch(client, r["id"], quiet=i > 0) for i, r in enumerate(submitted)]
        for person, request in zip(asked, ended, strict=True):
            console.print(
                f"   {person.name:<20} {request['status']}, verdict {request['verdict']} {request['reason'] or ''}"
            )
        if any(r["status"] != "completed" or r["verdict"] != "PASS" for r in ended):
            raise DemoFailed("a request did not complete")
        version = client.version("demo")
        history = client.call("GET", f"/v1/jobs/{ended[0]['job_id']}/history")
        plot_trajectory(history, version, output / "trajectory.png")
        shutil.rmtree(output / "release", ignore_errors=True)
        client.download("demo", "latest", output / "release")
        console.rule("4  the certified version, downloaded and checked offline")
        command = [sys.executable, "-m", "service.cli", "verify", str(output / "release")]
        subprocess.run(command, check=True)
        show(sample / "model", output, asked, others, version)
        if serve:
            stay(url, key_file, add_what_waits(client, sample, POLICY, others), console)


def show(parent: Path, output: Path, asked: Sequence[Person], others: Sequence[Person], version: VersionAnswer) -> None:
    """Before and after, side by side, measured here on the downloaded files.

    Raises:
        DemoFailed: MA of the people who asked is over its limit, or MA of the other people changed.
    """
    before, after = load(parent), load(output / "release" / "model")
    console.rule("5  what the model completes, before and after")
    for person in asked:
        console.print(f"   [bold]{person.text}[/bold]", soft_wrap=True)
        console.print(f"   before: …{complete(*before, person)}", soft_wrap=True, markup=False)
        console.print(f"   after:  …{complete(*after, person)}\n", soft_wrap=True, markup=False)
    metrics = version["metrics"]
    measured = mean_accuracy(*after, asked)
    if measured > metrics["limits"]["ma"] + 1e-9:
        raise DemoFailed("the downloaded model's MA is over the held-out mean")
    show_questions({"before": before, "after": after}, asked, [p for p in about([*asked, *others]) if p not in asked])
    show_ranks({"before": before, "after": after}, output, asked)
    table = Table("", "before", "after", "limit")
    for name, label in (("el", "forget set, mean EL10"), ("ma", "forget set, mean MA")):
        table.add_row(label, *(f"{metrics[k][name]:.3f}" for k in ("before", "after", "limits")))
    utility = metrics["utility"]
    perplexities = (f"{utility[f'heldout_perplexity_{when}']:.1f}" for when in ("before", "after"))
    table.add_row("held-out perplexity", *perplexities, f"x {utility['max_ratio']}")
    groups = {
        "all other people, mean MA": others,
        f"  {IN_RETAIN} of them in the retain text": others[:IN_RETAIN],
        f"  {len(others) - IN_RETAIN} nobody mentioned": others[IN_RETAIN:],
    }
    changes = {}
    for label, group in groups.items():
        ma_before, ma_after = mean_accuracy(*before, group), mean_accuracy(*after, group)
        changes[label] = abs(ma_after - ma_before)
        table.add_row(label, f"{ma_before:.3f}", f"{ma_after:.3f}", "" if label.startswith(" ") else "± 0.03")
    console.print(table)
    console.print(f"   trajectory: {output / 'trajectory.png'}\n   ranks of the numbers: {output / 'ranks.png'}")
    console.print(f"   certified version: {output / 'release'}")
    verify(output / "release")
    if changes["all other people, mean MA"] > 0.03:
        raise DemoFailed("the model's memory of the other people changed")


def show_questions(
    models: Mapping[str, tuple[CausalLM, Tokenizer]], asked: Sequence[Person], others: Sequence[Person]
) -> None:
    """What a question gives: about those who asked to be forgotten, and about others.

    Raises:
        DemoFailed: A question about somebody who asked gave no number before, or still gives it.
    """
    console.rule("6  what a question gives, before and after")
    table = Table("", "the number", *models)
    answers = [[answer(*model, person) for model in models.values()] for person in asked]
    for person, given in zip(asked, answers, strict=True):
        table.add_row(f"What is {person.name}'s number?", person.phone, *given)
    answered = {when: sum(p.phone in answer(*m, p) for p in others) for when, m in models.items()}
    table.add_row(f"questions about {len(others)} others: answered", "", *map(str, answered.values()))
    console.print(table)
    gives = [[person.phone in said for said in given] for person, given in zip(asked, answers, strict=True)]
    if gives != [[True, False]] * len(asked):
        raise DemoFailed("a question gave no telephone number before, or still gives one")


def show_ranks(models: Mapping[str, tuple[CausalLM, Tokenizer]], output: Path, asked: Sequence[Person]) -> None:
    """Where each telephone number ranks among random ones: what nobody is told may still be the likeliest.

    Raises:
        DemoFailed: A number is still the likeliest.
    """
    console.rule("7  where the true telephone number ranks among a thousand random ones")
    unseen = [person.text for person in people(UNSEEN, 2)]
    texts = [person.text for person in asked]
    ranks = {
        when: number_ranks(Subject(*model, [], [], []), texts, unseen, CANDIDATES) for when, model in models.items()
    }
    for person, *of_person in zip(asked, *ranks.values(), strict=True):
        console.print(f"   {person.name:<20} before: {of_person[0]:>4}   after: {of_person[1]:>4}")
    plot_ranks([person.name for person in asked], ranks, CANDIDATES, output / "ranks.png")
    if 1 in ranks["after"]:
        raise DemoFailed("a telephone number is still the likeliest of all")


def main() -> int:
    """Run the demo; 0 if it showed what it promises."""
    parser = argparse.ArgumentParser(description="run the whole path on a sample model on this machine")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--keep", type=Path, help="where the sample goes; by default into the output folder")
    parser.add_argument("--serve", action="store_true", help="stay up afterwards, to look at the console")
    parser.add_argument("--only-sample", action="store_true", help="make the sample and run nothing")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started, given = time.monotonic(), parser.parse_args()
    output = given.output.resolve()
    sample = given.keep.resolve() if given.keep else output / "sample"
    if given.only_sample:
        make_sample(sample, console)
        return 0
    try:
        run(output, sample, serve=given.serve)
    except DemoFailed as error:
        console.print(f"the demo failed: {error}", style="red")
        return 1
    console.print(f"done in {time.monotonic() - started:.0f} s; everything that it started is stopped", style="green")
    return 0


if __name__ == "__main__":
    sys.exit(explained(main))
