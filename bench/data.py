"""Reads the public data sets and describes the machine, for every bench."""

import csv
import os
import platform
import subprocess
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

Known = TypeVar("Known")

csv.field_size_limit(10**7)


def read(path: Path) -> list[str]:
    """The text column of a CSV file."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [row["text"] for row in csv.DictReader(handle) if row["text"].strip()]


@cache
def machine() -> str:
    """The machine that this runs on, and the commit at the first call, in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0))
    describe, here = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    commit = subprocess.run(describe, capture_output=True, text=True, check=False, cwd=here)
    return f"{model}, {cores} cores, Python {platform.python_version()}, commit {commit.stdout.strip()}"


def printed_progress() -> Callable[[str, float], None]:
    """Prints the stage of a run, the share that is done, and the seconds since now."""
    started = time.monotonic()
    return lambda stage, share: print(f"{stage} {share:.0%} {time.monotonic() - started:.0f} s", flush=True)


def some(known: Iterable[Known]) -> Callable[[str], list[Known]]:
    """The type of an argument that names some of these, with commas between them."""
    by_name = {str(one): one for one in known}

    def parse(given: str) -> list[Known]:
        if unknown := set(given.split(",")) - by_name.keys():
            raise ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(by_name)}")
        return [by_name[name] for name in given.split(",")]

    return parse


class PeakMemory:
    """Peak resident memory above that at the start, in MiB (Linux).

    Attributes:
        start: What was resident at the start, in MiB.
    """

    def __init__(self) -> None:
        """Reset the kernel's high-water mark to the memory that is resident now."""
        Path("/proc/self/clear_refs").write_text("5")
        self.start = self._status("VmRSS")

    @staticmethod
    def _status(name: str) -> float:
        """A value of the process status, in MiB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024

    def peak(self) -> float:
        """The most MiB above the start since then."""
        return self._status("VmHWM") - self.start
