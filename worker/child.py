"""The compute child: `python -m worker.child`, one job, texts on standard input, JSON lines on standard output.

It has no database and no keys, frees its memory by ending, can be killed at any time, and ends by itself when
its parent does (standard input closes).
"""

import json
import os
import sys
import threading
import traceback
from typing import Any, BinaryIO

from service.domain.job_input import JobInput
from service.failpoints import reach
from service.schemas.report import write_report
from worker.engine.errors import EngineError
from worker.steps.pipeline import Pipeline


class Out:
    """Messages to the parent, one JSON object a line."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def __call__(self, kind: str, **values: Any) -> None:
        """Send one message."""
        self._stream.write(json.dumps({"type": kind, **values}).encode() + b"\n")
        self._stream.flush()


def end_with_parent(stream: BinaryIO) -> None:
    """Wait for the parent's end of the pipe to close, then end at once."""
    stream.read()
    os._exit(70)


def main() -> int:
    """Read the job, run it, report."""
    # Libraries that print must not write between our messages.
    out = Out(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    reach("child.started")
    inputs = JobInput(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        out("report", report=write_report(Pipeline(inputs, out).run()))
    except EngineError as error:
        out("error", code=error.code, permanent=error.permanent)
    except Exception as error:
        # The frames, not the message: a library may quote its input, and that is someone's text.
        frames = "".join(traceback.format_tb(error.__traceback__))
        sys.stderr.write(f"compute child failed: {type(error).__name__}\n{frames}")
        out("error", code=type(error).__name__, permanent=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
