"""Several processes of the API on one socket. The kernel gives each connection to one of them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from service.explain import CANNOT_START

WATCH_SECONDS = 0.5
STEADY_SECONDS = 5.0  # a process that ended sooner after its start would end again
KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL


class _Member:
    """One of the processes."""

    def __init__(self, command: Sequence[str], fd: int, *, is_first: bool) -> None:
        # They cannot share the port of the metrics, which are read from the database anyhow: one has it.
        others = {} if is_first else {"UNLEARND_METRICS_PORT": "0"}
        self._command, self._fd, self._environment = command, fd, {**os.environ, **others}
        self.start()

    def start(self) -> None:
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(self._command, pass_fds=[self._fd], env=self._environment)

    def keep_running(self) -> int | None:
        """Start the process again if it has ended; its exit code if that would not help."""
        code = self.process.poll()
        if code is None:
            return None
        is_young = time.monotonic() - self.started_at < STEADY_SECONDS
        if code == CANNOT_START or (is_young and code != -signal.SIGKILL):
            return code
        self.start()
        return None


def run_several(command: Sequence[str], processes: int, fd: int) -> int:
    """Run a command several times until SIGINT or SIGTERM. One that ends is started again.

    Args:
        command: The command; each process inherits `fd`.
        processes: How many.
        fd: A socket that listens.

    Returns:
        The exit code: 0 after a signal; that of a process which ended soon after its start.
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
