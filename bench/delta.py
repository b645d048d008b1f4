"""The change instead of the model: bytes, seconds and peak memory of merging and of rebuilding, on the same files.

    python -m bench.delta --model FOLDER
    python -m bench.delta --random 4        # a random checkpoint of so many GB in bfloat16, of Llama's form, in shards

`in memory` loads the model, adds the change and saves it, as `save_pretrained` does. `on files` is what the service
does. `rebuilt` is what `unlearnd apply` does with the change, on one thread, and the hash of the result that `verify`
makes. Each runs in a process of its own; the peak is the process', with the libraries that it has imported.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RANK, SCALE, SHARD = 16, 2.0, "1GB"


def main() -> int:
    """Measure all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--random", type=float, help="GB")
    parser.add_argument("--run", choices=sorted(WAYS), help="what a child process does")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.run:
        WAYS[arguments.run](arguments.folder)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if arguments.random:
            write_random(root / "base", arguments.random)
        else:
            shutil.copytree(arguments.model, root / "base")
        write_factors(root)
        rows = [measured(name, root) for name in WAYS]
        same = [digest(root / "files"), digest(root / "rebuilt")]
        sizes = [
            sum(path.stat().st_size for path in (root / name).glob("*.safetensors")) for name in ("base", "change")
        ]
    print("| | seconds | peak memory, MB |\n|---|---|---|")
    for name, seconds, peak in rows:
        print(f"| {name} | {seconds:.1f} | {peak:,} |")
    print(f"\nWeights {sizes[0] / 1e6:,.0f} MB, change {sizes[1] / 1e6:,.1f} MB: {sizes[1] / sizes[0]:.2%}.")
    print(f"Rebuilt to the bit, with one thread and with {os.cpu_count()}: {same[0] == same[1]}.")
    return 0


def measured(name: str, root: Path) -> tuple[str, float, int]:
    """(name, seconds, peak MB) of one way, in a process of its own."""
    command = [sys.executable, "-m", "bench.delta", "--run", name, "--folder", str(root)]
    threads = "1" if name == "rebuilt" else str(os.cpu_count())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    seconds, peak = json.loads(result.stdout.splitlines()[-1])
    return name, seconds, peak


def report(started: float) -> None:
    """Print the seconds since `started` and the peak memory of this process."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) // 1000  # getrusage would give the parent's, if that was larger
    print(json.dumps([time.monotonic() - started, peak]))


def in_memory(root: Path) -> None:
    """Load, add, save."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from worker.engine.merge import merge_into

    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype="auto")
    merge_into(model, load_file(root / "factors.safetensors"), SCALE)
    model.save_pretrained(root / "memory", max_shard_size=SHARD)
    report(started)


def on_files(root: Path) -> None:
    """Write the change, and the files with it."""
    from safetensors.torch import load_file

    from worker.steps.merging import merge_files, write_change

    for name in ("change", "files"):
        (root / name).mkdir()
    started = time.monotonic()
    write_change(root / "base", root / "change", load_file(root / "factors.safetensors"), SCALE)
    merge_files(root / "base", root / "files", root / "change")
    report(started)


def rebuilt(root: Path) -> None:
    """Write the files with the change, and hash the base and the result."""
    from service.changed_weights import ChangedWeights
    from service.delta import Delta
    from service.files import file_sha256
    from service.weight_files import loaded_weights

    (root / "rebuilt").mkdir()
    started = time.monotonic()
    names = loaded_weights(root / "base")
    weights = ChangedWeights(root / "base", names, Delta(root / "change"))
    for name in names:
        original = hashlib.sha256()
        with (root / "rebuilt" / name).open("wb") as file:
            file.writelines(weights.file(name, original))
        file_sha256(root / "rebuilt" / name)
    report(started)


WAYS: dict[str, Callable[[Path], None]] = {"in memory": in_memory, "on files": on_files, "rebuilt": rebuilt}


def digest(folder: Path) -> str:
    """One sha256 of all weights files of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def write_random(folder: Path, gigabytes: float) -> None:
    """A random checkpoint of Llama's form in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4}
    layers = max(1, round(gigabytes * 1e9 / 2 / 45e6))  # a layer has 45 million weights
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=32000, tie_word_embeddings=True, **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)


def write_factors(root: Path) -> None:
    """Random factors, as training leaves them: near their start."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from worker.engine.adapter import find_targets, target_weights

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(root / "base"))
    generator, state = torch.Generator().manual_seed(0), {}
    for name, weight in target_weights(model, find_targets(model)).items():
        for letter, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
            start = 0.1 * torch.randn(shape, generator=generator)
            state[f"{name}|{letter}0"] = start
            state[f"{name}|{letter}"] = start + 0.001 * torch.randn(shape, generator=generator)
    save_file(state, root / "factors.safetensors")


if __name__ == "__main__":
    sys.exit(main())
