"""One job in one process and shared by two: verdicts, factors, seconds, and what each process holds.

    python -m bench.sharding MODEL --data FOLDER [--length 32] [--texts 2] [--epochs 2]

Both are compute children as a worker starts them, on one thread each. The texts to forget are those of `tdec` that the
model knows best. The weights of a process are its parts and the largest layer, which is gathered when it is used; the
memory is the most private memory that its system gave it, sampled at each message of the job.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import machine, read
from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from tests.worker.steps.children import messages, processes
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.sharding import gathered_modules, shard
from worker.engine.types import CausalLM
from worker.steps.loading import load_model, stored_dtype


def main() -> None:
    """Run the job twice, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--meet", help="what a process of the weights' count does: the file where they meet")
    arguments = parser.parse_args()
    if arguments.meet:
        count_weights(arguments.model, arguments.meet)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    forget = known_texts(arguments.model, arguments.data, arguments.length, arguments.texts)
    print(
        f"{machine()}\n\n| processes | ended | seconds | weights, MB each | private memory, MB each |\n"
        "|---|---|---|---|---|"
    )
    results = []
    with tempfile.TemporaryDirectory() as place:
        for size in (1, 2):
            job = inputs(arguments, Path(place) / str(size), forget, size)
            report, seconds, memory = run(job)
            weights = held(arguments.model, Path(place) / f"meeting{size}", size)
            ended = f"{report['findings']['outcome']} {report['findings']['reason'] or ''}"
            print(f"| {size} | {ended} | {seconds:.0f} | {numbers(weights)} | {numbers(memory)} |", flush=True)
            results.append((report, load_file(Path(job.work) / "adapter.safetensors")))
    (one, alone), (two, shared) = results
    difference = max(float((alone[name] - shared[name]).abs().max()) for name in alone)
    print(
        f"\nSame verdicts: {one['verdicts'] == two['verdicts']}; the largest difference of a factor: {difference:.1g}"
    )


def numbers(sizes: list[float]) -> str:
    """Sizes in MB."""
    return ", ".join(f"{size / 1e6:,.0f}" for size in sizes)


def known_texts(folder: Path, data: Path, length: int, count: int) -> list[str]:
    """The texts of `tdec`, cut, that the model knows best."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sequences = [tokenizer(text).input_ids[:length] for text in read(data / "tdec" / "lm_extraction_128_0.csv")]
    known = zip(map(accuracy, token_matches(model, sequences)), sequences, strict=True)
    best = sorted(known, reverse=True)[:count]
    return [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in best]


def inputs(arguments: argparse.Namespace, work: Path, forget: list[str], size: int) -> JobInput:
    """The job for so many processes."""
    (work / "1").mkdir(parents=True)
    files: dict[str, str] = {}
    general = arguments.data / "general"
    for name, texts in (("retain", read(general / "wikitext.csv")[:200]), ("heldout", read(general / "pile.csv")[:60])):
        files[name] = str(work / name)
        Path(files[name]).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    policy = {
        "sequence_length": arguments.length,
        "heldout_sequences": 20,
        "utility_sequences": 8,
        "own_samples": 16,
        "probe_samples": 0,
        "max_epochs": arguments.epochs,
        "train_dtype": "float32",
        "attacks": {},
        "devices": size,
        "sharding": "always",
    }
    folder = str(arguments.model)
    return JobInput(
        str(work / "1"),
        parent=folder,
        first=folder,
        retain=files["retain"],
        heldout=files["heldout"],
        policy=policy,
        texts=forget,
        request_ids=list(range(len(forget))),
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="r",
    )


def run(job: JobInput) -> tuple[JsonObject, float, list[float]]:
    """(report, seconds, the most private bytes of each process)."""
    started, most = time.monotonic(), dict[int, float]()

    def look(_: JsonObject, pid: int) -> None:
        for one in processes(pid):
            status = Path(f"/proc/{one}/status").read_text().splitlines()
            lines = dict(line.split(":") for line in status if ":" in line)
            most[one] = max(most.get(one, 0.0), 1024.0 * int(lines["RssAnon"].split()[0]))

    *_, last = messages(job, look)
    if last["type"] != "report":
        raise SystemExit(str(last))
    return last["report"], time.monotonic() - started, [most[pid] for pid in sorted(most)]


def held(folder: Path, meeting: Path, size: int) -> list[float]:
    """The bytes of weights that each of so many processes holds."""
    command = [sys.executable, "-m", "bench.sharding", str(folder), "--meet", str(meeting)]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(size)}, text=True
        )
        for rank in range(size)
    ]
    return [float(process.communicate()[0].splitlines()[-1]) for process in started]


def count_weights(folder: Path, meeting: str) -> None:
    """Print the bytes of weights that this process holds."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    model = shard(load_model(folder, stored_dtype(folder)), torch.device("cpu"))
    print(local_bytes(model) + (0 if size == 1 else max(map(whole_bytes, gathered_modules(model)))))


def local_bytes(model: CausalLM) -> int:
    """The bytes of a process' parts."""
    own = {
        id(weight): weight for module in model.modules() for weight in module._parameters.values() if weight is not None
    }
    return sum((weight.to_local() if isinstance(weight, DTensor) else weight).nbytes for weight in own.values())


def whole_bytes(module: torch.nn.Module) -> int:
    """The float32 bytes of a layer that is gathered."""
    return sum(4 * weight.numel() for weight in module.parameters())


if __name__ == "__main__":
    main()
