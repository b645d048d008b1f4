"""`unlearnd verify` of a release against `sha256sum` over the same files: whole processes, in turns.

python -m bench.verify [--megabytes 500]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service.audit.verify import MODEL_SIGNATURE
from tests.issuer import Issuer

PIECES, ROUNDS = 4, 7


def large_release(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """(release, trust.json) with `megabytes` of weights."""
    issuer = Issuer(folder / "keys")
    release = issuer.release(folder / "release")
    for piece in range(PIECES):
        with (release / "model" / f"model-{piece}.safetensors").open("wb") as out:
            for _ in range(megabytes // PIECES):
                out.write(os.urandom(1 << 20))
    issuer.keyring.sign_model(release / "model", release / MODEL_SIGNATURE)
    issuer.certify_folder(release)
    return release, issuer.trust_path


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    megabytes = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as folder:
        release, trust = large_release(Path(folder), megabytes)
        files = [str(path) for path in sorted(release.rglob("*")) if path.is_file()]
        unlearnd = str(Path(sys.executable).parent / "unlearnd")
        commands = {
            "sha256sum": ["sha256sum", *files],
            "unlearnd verify": [unlearnd, "verify", str(release), "--trust", str(trust)],
            "unlearnd --help": [unlearnd, "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(seconds(command))
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"| {megabytes} MB, median of {ROUNDS}, warm | seconds | ratio |\n|---|---|---|")
        for name, value in medians.items():
            print(f"| `{name}` | {value:.2f} | {value / medians['sha256sum']:.2f} |")


if __name__ == "__main__":
    main()
