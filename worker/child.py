"""The compute child: `python -m worker.child` reads one job on standard input and writes JSON lines to standard output.

The child has no database and no keys. It frees its memory by ending, can be killed at any time, and ends by itself
when its parent ends (standard input closes).
"""

import json
import os
import resource
import sys
import threading
import traceback
from typing import BinaryIO

from service.domain.job_input import JobInput
from service.failpoints import reach
from service.schemas.report import write_report
from worker.engine.errors import EngineError
from worker.steps.pipeline import Pipeline
from worker.steps.recheck import RecheckPipeline
from worker.steps.team import Team


class MessageWriter:
    """Writes messages to the parent, one JSON object per line."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def __call__(self, kind: str, **values: object) -> None:
        """Write one message."""
        self._stream.write(json.dumps({"type": kind, **values}).encode() + b"\n")
        self._stream.flush()


def end_with_parent(stream: BinaryIO) -> None:
    """Wait until the parent's end of the pipe closes, then exit at once."""
    stream.read()
    os._exit(70)


def main() -> int:
    """Read the job, run it, write its report."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the texts
    # A library that prints must not write between the messages.
    send = MessageWriter(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    team = Team()
    if team.rank == 0:
        reach("child.started")
        inputs = JobInput(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        if team.rank:
            team.meet()
            team.follow()
            return 0
        report = (RecheckPipeline if inputs.recheck else Pipeline)(inputs, send, team).run()
        if report is not None:
            send("report", report=write_report(report))
        team.end()
    except EngineError as error:
        sys.stderr.write(f"compute child: {error.code}: {str(error)[:300]!r}\n")  # it quotes no record
        send("error", code=error.code, permanent=error.permanent)
    except Exception as error:
        # The frames without the message: a library may quote its input, which is a person's text.
        frames = "".join(traceback.format_tb(error.__traceback__))
        sys.stderr.write(f"compute child failed: {type(error).__name__}\n{frames}")
        if team.rank:
            return 1  # the first process ends with it, and says no more
        send("error", code=type(error).__name__, permanent=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
