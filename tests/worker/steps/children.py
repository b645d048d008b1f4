"""A compute child as a worker starts it, for tests and benches: what it says, and its processes."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from worker.steps.messages import read_messages
from worker.steps.run import end_child, start_child


def messages(inputs: JobInput, at: Callable[[JsonObject, int], None] = lambda *_: None) -> Iterator[JsonObject]:
    """What a child says until it ends; `at` sees each message, and the child's process."""
    child = start_child(inputs, confined=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(asdict(inputs)).encode() + b"\n")
        child.stdin.flush()
        for message in read_messages(child.stdout):
            at(message, child.pid)
            yield message
            if message["type"] in ("report", "error"):  # a worker reads no further
                return
    finally:
        end_child(child)
        child.stdin.close()
        child.stdout.close()


def processes(pid: int) -> list[int]:
    """A process's Python processes of a job: the first, then the others."""
    below = [pid]
    for one in below:
        below += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    commands = {one: Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0") for one in below}
    return [
        one for one, command in commands.items() if command[:3] == [sys.executable.encode(), b"-m", b"worker.child"]
    ]
