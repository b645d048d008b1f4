"""Failpoints: named points at which a test halts a process and then harms it (`tests/chaos`); off in production.

A point has no effect unless `UNLEARND_FAILPOINTS` names a folder and a file with the point's name arms it there. The
first process to reach an armed point renames the file to `<point>@<pid>` and halts until somebody removes that file. So
one process hits a point once, and the test that armed the point knows which process it was.
"""

import os
import time
from pathlib import Path

FOLDER = Path(os.environ["UNLEARND_FAILPOINTS"]) if "UNLEARND_FAILPOINTS" in os.environ else None
POLL_SECONDS = 0.01


def reach(point: str) -> None:
    """Pass `point`; if a test has armed the point, halt until the test releases it."""
    if FOLDER is None:
        return
    hit = FOLDER / f"{point}@{_host_pid()}"
    try:
        (FOLDER / point).rename(hit)
    except FileNotFoundError:
        return
    while hit.exists():
        time.sleep(POLL_SECONDS)


def _host_pid() -> str:
    """This process's number as /proc has it: the compute child has another one in a namespace of its own."""
    try:
        return Path("/proc/self").readlink().name
    except OSError:
        return str(os.getpid())
