"""The whole path over HTTP on a real pretrained model and real memorised sequences.

    python -m bench.real_job --model FOLDER [--data ../shared/data] [--sequences 32]

The model is any Hugging Face folder or hub id; the forget set is `tdec/lm_extraction_32_0.csv` of the data
folder, retain `general/wikitext.csv`, held-out and utility disjoint parts of `general/pile.csv` (the engine takes
every other text for thresholds, the rest for perplexity). Prints a table in Markdown.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import machine, read
from service.audit.verify import verify
from service.cli.connection import server_path
from service.client.http import Client
from service.domain.json_types import JsonObject
from worker.demo.__main__ import running_stack
from worker.engine.data import first_windows
from worker.engine.metrics.memorization import mean_accuracy

REQUESTS, HELDOUT_TEXTS = 2, 120


def write(path: Path, texts: list[str]) -> str:
    """Write texts as JSON lines; returns the path as a string."""
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


def follow(client: Client, job_id: str) -> None:
    """Print a job's events as they arrive."""
    for kind, data in client.events(job_id):
        if kind != "progress":
            print(f"  {time.strftime('%H:%M:%S')} {kind} {json.dumps(data)[:160]}", file=sys.stderr, flush=True)


def heldout_accuracy(folder: Path | str, texts: list[str], policy: JsonObject) -> float:
    """Mean MA on the held-out texts that set the thresholds, by a model read from disk."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    length, count = policy.get("sequence_length", 200), policy["heldout_sequences"]
    return mean_accuracy(model, first_windows(tokenizer, texts[0::2], length, count))


def table(version: JsonObject, history: list[JsonObject], seconds: dict[str, float], wall: float) -> str:
    """The result in Markdown."""
    metrics = version["metrics"]
    before, after, limits, utility = (metrics[k] for k in ("before", "after", "limits", "utility"))
    heldout, retain = (
        (utility[f"{name}_perplexity_before"], utility[f"{name}_perplexity_after"]) for name in ("heldout", "retain")
    )
    budget = f"x {utility['heldout_ratio']:.3f} (budget x {utility['max_ratio']})"
    rows = [
        ("forget set, mean EL10", before["el"], after["el"], f"<= {limits['el']:.4f} (held-out mean)"),
        ("forget set, mean MA", before["ma"], after["ma"], f"<= {limits['ma']:.4f} (held-out mean)"),
        ("Pile perplexity (held-out)", *heldout, budget),
        ("WikiText perplexity (retain)", *retain, f"x {utility['retain_ratio']:.3f}"),
    ]
    lines = ["| | before | after | limit or ratio |", "|---|---|---|---|"]
    lines += [f"| {name} | {a:.4f} | {b:.4f} | {limit} |" for name, a, b, limit in rows]
    stages = ", ".join(f"{name} at most {value:.0f} s" for name, value in seconds.items())
    steps = sum(entry["steps"] for entry in history)
    lines += ["", f"{len(history)} epochs, {steps} optimiser steps; {stages}; whole path {wall:.0f} s."]
    trace = "; ".join(f"{e['epoch']}: MA {e['ma']:.3f}, perplexity {e['perplexity']:.1f}" for e in history)
    return "\n".join([*lines, f"By epoch: {trace}."])


def main() -> int:
    """Run the job and print its table; 0 if the version was published and verifies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--policy", type=json.loads, default={})
    arguments = parser.parse_args()
    policy = {"margin": 0.5, "heldout_sequences": 24, "utility_sequences": 32, **arguments.policy}
    data = arguments.data
    forget = read(data / "tdec" / "lm_extraction_32_0.csv")[: arguments.sequences]
    with (
        tempfile.TemporaryDirectory(prefix="unlearnd-bench-") as folder,
        running_stack(Path(folder) / "stack", Path(folder), Path(arguments.model)) as (client, _, _),
    ):
        pile = read(data / "general" / "pile.csv")[:HELDOUT_TEXTS]
        retain = write(Path(folder) / "retain.jsonl", read(data / "general" / "wikitext.csv"))
        heldout = write(Path(folder) / "heldout.jsonl", pile)
        client.add_model("real", server_path(arguments.model), retain, heldout, policy)
        started = time.monotonic()
        share = -(-len(forget) // REQUESTS)
        sent = [client.submit("real", forget[i : i + share]) for i in range(0, len(forget), share)]
        job_id = client.until_batched(sent[0]["id"])["job_id"]
        assert job_id is not None
        follow(client, job_id)
        ended = [client.wait(r["id"]) for r in sent]
        wall = time.monotonic() - started
        print([(r["status"], r["verdict"], r["reason"]) for r in ended], file=sys.stderr)
        if any(r["status"] != "completed" for r in ended):
            return 1
        version = client.version("real")
        client.download("real", "latest", Path(folder) / "release")
        statement = verify(Path(folder) / "release").statement["predicate"]
        history = client.call("GET", f"/v1/jobs/{ended[0]['job_id']}/history")
        print(f"Machine: {machine()}. Policy: {json.dumps(policy)}.\n")
        print(f"{len(sent)} requests, {len(forget)} sequences; published, downloaded, verified offline.\n")
        seconds = {name: float(value) for name, value in statement["training"]["seconds"].items()}
        print(table(version, history, seconds, wall))
        folders = (arguments.model, Path(folder) / "release" / "model")
        before, after = (heldout_accuracy(f, pile, policy) for f in folders)
        print(f"Held-out MA, over those windows: {before:.4f} before, {after:.4f} after.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
