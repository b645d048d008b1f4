"""Several processes of the API on one socket. The kernel gives each connection to one of them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from service.explain import CANNOT_START
from service.observability.logging import get_logger

WATCH_SECONDS = 0.5
STEADY_SECONDS = 60.0  # a process that ran for so long has started well
MOST_FAILURES = 5  # in a row: then the group ends, and whoever started it decides
KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL
logger = get_logger(__name__)


class _Member:
    """One of the processes. One that somebody killed is started again at once, any other later each time."""

    def __init__(self, command: Sequence[str], fd: int, *, is_first: bool) -> None:
        # They cannot share the port of the metrics, which are the same for all of them: one has it.
        others = {} if is_first else {"UNLEARND_METRICS_PORT": "0"}
        self._command, self._fd, self._environment = command, fd, {**os.environ, **others}
        self._failures, self._due = 0, 0.0
        self._start()

    def _start(self) -> None:
        self._started_at, self._has_ended = time.monotonic(), False
        self.process = subprocess.Popen(self._command, pass_fds=[self._fd], env=self._environment)

    def keep_running(self) -> int | None:
        """Start the process again if it has ended and that is due; its exit code if it is given up."""
        code, now = self.process.poll(), time.monotonic()
        if code is not None and not self._has_ended:
            self._has_ended = True
            was_steady = now - self._started_at > STEADY_SECONDS
            self._failures = 0 if code == -signal.SIGKILL else 1 if was_steady else self._failures + 1
            if code == CANNOT_START or self._failures > MOST_FAILURES:
                return code if code > 0 else 128 - code
            self._due = now + 2.0**self._failures - 1
            logger.warning(f"a process of the API has ended with {code}; it is started again")
        if self._has_ended and now >= self._due:
            self._start()
        return None


def run_several(command: Sequence[str], processes: int, fd: int) -> int:
    """Run a command several times until SIGINT or SIGTERM. One that ends is started again.

    Args:
        command: The command; each process inherits `fd`.
        processes: How many.
        fd: A socket that listens.

    Returns:
        The exit code: 0 after a signal; that of a process which was given up.
    """
    stopping, code = threading.Event(), 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    members = [_Member(command, fd, is_first=index == 0) for index in range(processes)]
    while not code and not stopping.wait(WATCH_SECONDS):
        code = next(filter(None, (member.keep_running() for member in members)), 0)
    for member in members:
        member.process.terminate()
    deadline = time.monotonic() + KILL_AFTER
    for member in members:
        try:
            member.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
    return code
