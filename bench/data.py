"""Reading the public data sets, and a line about the machine: what every bench needs."""

import csv
import os
import platform
import subprocess
from pathlib import Path

csv.field_size_limit(10**7)


def read(path: Path) -> list[str]:
    """The text column of a CSV file."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [row["text"] for row in csv.DictReader(handle) if row["text"].strip()]


def machine() -> str:
    """What this ran on, in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return f"{model}, {cores} cores, Python {platform.python_version()}, commit {commit.stdout.strip()}"
