"""One supervised process: started in a session of its own, logged to a file, stopped by its own signal."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

KILL_AFTER = 12.0  # seconds between the polite signal and the last one


@dataclass
class Process:
    """A command and, while it runs, its process.

    Attributes:
        name: For logs and the pid file.
        command: What to run.
        log: Where its output goes.
        stop_signal: What asks it to stop.
        environment: Added to ours.
        popen: Further arguments of `subprocess.Popen`.
    """

    name: str
    command: list[str]
    log: Path
    stop_signal: str = "SIGTERM"
    environment: dict[str, str] = field(default_factory=dict)
    popen: dict[str, Any] = field(default_factory=dict)
    running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and write its pid and birth beside its log."""
        with self.log.open("ab") as out:
            self.running = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **self.environment},
                **self.popen,
            )
        born = psutil.Process(self.running.pid).create_time()
        self.pid_file.write_text(f"{self.running.pid} {born}")

    @property
    def pid_file(self) -> Path:
        """Where the pid stands while it runs."""
        return self.log.with_suffix(".pid")

    def exited(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.running.poll() if self.running else None

    def ask_to_stop(self) -> None:
        """Send its stop signal."""
        if self.running and self.running.poll() is None:
            self.running.send_signal(getattr(signal, self.stop_signal))

    def wait(self, until: float | None = None) -> None:
        """Wait for its end until a moment of the monotonic clock, then kill its whole session."""
        if self.running is None:
            return
        left = KILL_AFTER if until is None else max(0.0, until - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(left)
        self.end_session()
        self.running.wait()

    def end_session(self) -> None:
        """Kill whatever still runs of the session that it led."""
        if self.running is not None:
            kill_session(self.running.pid)
        self.pid_file.unlink(missing_ok=True)

    def stop_leftover(self) -> None:
        """Stop the same process of an earlier supervisor that was killed, if it still runs."""
        try:
            pid, born = self.pid_file.read_text().split()
            found = psutil.Process(int(pid))
            same = found.create_time() == float(born)  # a pid is used again, a pid and its birth are not
        except (OSError, ValueError, psutil.Error):
            same = False
        if same:
            found.send_signal(getattr(signal, self.stop_signal))
            _, alive = psutil.wait_procs([found], timeout=KILL_AFTER)
            if alive:
                kill_session(found.pid)
        self.pid_file.unlink(missing_ok=True)


def kill_session(leader: int) -> None:
    """Kill whatever is left of a session that we started."""
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == leader:
                candidate.kill()
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
