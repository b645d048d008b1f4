"""Named points of the path at which a test halts a process to do it harm (`tests/chaos`); in production nothing.

A point does nothing unless `UNLEARND_FAILPOINTS` names a folder and the point is armed there, by a file of its name.
The first process to reach an armed point takes the file, by renaming it to `<point>@<pid>`, and stays until that is
removed. So a point is hit once, by one process, and whoever armed it knows which.
"""

import os
import time
from pathlib import Path

FOLDER = Path(os.environ["UNLEARND_FAILPOINTS"]) if "UNLEARND_FAILPOINTS" in os.environ else None
POLL_SECONDS = 0.01


def reach(point: str) -> None:
    """Pass `point`, or halt here while a test says so."""
    if FOLDER is None:
        return
    hit = FOLDER / f"{point}@{os.getpid()}"
    try:
        (FOLDER / point).rename(hit)
    except FileNotFoundError:
        return
    while hit.exists():
        time.sleep(POLL_SECONDS)
