"""One supervised process: it runs in a session of its own, logs to a file, and has its own stop signal."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

KILL_AFTER = 12.0  # seconds between the stop signal and SIGKILL


@dataclass
class Process:
    """A command and, while it runs, its process.

    Attributes:
        name: The name of the part, for log lines.
        command: The command and its arguments.
        log: The file for its output. The pid file is beside it.
        stop_signal: The signal that makes it stop.
        environment: Variables in addition to this process's environment.
        pass_fds: Open files and sockets that it inherits.
        user: The OS user and group that it runs as; None for this process's own.
        running: The process, once it has been started.
        started_at: When it was started last, on the monotonic clock.
    """

    name: str
    command: list[str]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    environment: dict[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    user: str | None = None
    running: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0

    def start(self) -> None:
        """Start the process, and write its pid and creation time to the pid file.

        Raises:
            OSError: The log or the pid file cannot be written, or the system has no room for a process. Nothing runs.
        """
        self.started_at = time.monotonic()
        with self.log.open("ab") as out:
            self.running = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **self.environment},
                pass_fds=self.pass_fds,
                user=self.user,
                group=self.user,
            )
        try:
            created = psutil.Process(self.running.pid).create_time()
            pid_file(self.log).write_text(f"{self.running.pid} {created}")
        except OSError:  # the disk is full: a later supervisor could not find the process
            self.end_session()
            self.running.wait()
            raise

    def exited(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self.running.poll() if self.running else None

    def ask_to_stop(self) -> None:
        """Send the stop signal."""
        if self.running and self.running.poll() is None:
            self.running.send_signal(self.stop_signal)

    def wait(self, deadline: float | None = None) -> None:
        """Wait until the process ends, or until `deadline` on the monotonic clock. Then kill its whole session."""
        if self.running is None:
            return
        seconds = KILL_AFTER if deadline is None else max(0.0, deadline - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(seconds)
        self.end_session()
        self.running.wait()

    def end_session(self) -> None:
        """Kill every process that is left of its session."""
        if self.running is not None:
            kill_session(self.running.pid)
        pid_file(self.log).unlink(missing_ok=True)


def pid_file(log: Path) -> Path:
    """The file that holds the pid while the process with this log runs."""
    return log.with_suffix(".pid")


def stop_leftover(log: Path, stop_signal: signal.Signals) -> None:
    """Stop the process with this log if an earlier supervisor was killed and left it running."""
    if leftover := _find_leftover(log):
        leftover.send_signal(stop_signal)
        _, alive = psutil.wait_procs([leftover], timeout=KILL_AFTER)
        if alive:
            kill_session(leftover.pid)
    pid_file(log).unlink(missing_ok=True)


def _find_leftover(log: Path) -> psutil.Process | None:
    """The running process that the pid file names. A pid may be used again, so its creation time must match."""
    try:
        pid, created = pid_file(log).read_text().split()
        leftover = psutil.Process(int(pid))
        return leftover if leftover.create_time() == float(created) else None
    except (OSError, ValueError, psutil.Error):
        return None


def kill_session(leader: int) -> None:
    """Kill every process that is left of a session that this supervisor started."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue


def wait_until(condition: Callable[[], bool], seconds: float, give_up: threading.Event | None = None) -> bool:
    """Poll until the condition holds; false after `seconds`, or once `give_up` is set."""
    give_up = give_up or threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or give_up.wait(0.05):
            return False
    return True
