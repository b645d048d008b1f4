"""Starts a process again that ended by itself: later each time, and not for ever."""

import signal
import time

from service.domain.errors import CannotStart
from service.explain import CANNOT_START, describe_os_error
from service.local.logs import last_line
from service.local.process import Process
from service.observability.logging import get_logger

logger = get_logger(__name__)
FIRST_DELAY = 1.0  # seconds; each further delay is twice as long
LONGEST_DELAY = 30.0
STEADY_SECONDS = 60.0  # a process that ran for so long has started well
MOST_FAILURES = 7  # in a row: given up after about one and a half minutes


class Restarter:
    """Watches one process of the stack.

    A process that another one killed (SIGKILL) is started again at once, because nothing may be wrong with it.
    """

    def __init__(self, process: Process) -> None:
        """Watch this process, which has been started."""
        self.process = process
        self.failures = 0
        self._due: float | None = None  # when it is started again; None while it runs

    def look(self, now: float | None = None) -> None:
        """Note that the process has ended; start it again when that is due.

        Raises:
            CannotStart: To start it again would change nothing, or has not helped several times in a row.
        """
        now = time.monotonic() if now is None else now
        code = self.process.exited()
        if self._due is None and code is not None:
            self.process.end_session()  # a killed worker leaves its Celery beat running
            self.failures = self._count(code, now - self.process.started_at)
            reason = f"{self.process.name} ended with {code}: {last_line(self.process.log)}"
            self._plan(now, reason, permanent=code == CANNOT_START)
        if self._due is not None and now >= self._due:
            self._due = None
            try:
                self.process.start()
            except OSError as error:
                reason = f"{self.process.name} cannot be started: {describe_os_error(error)}"
                self.failures += 1
                self._plan(now, reason)

    def _count(self, code: int, seconds: float) -> int:
        """The failures in a row after an end with this exit code, so many seconds after the start."""
        if code == -signal.SIGKILL:
            return 0
        return 1 if seconds > STEADY_SECONDS else self.failures + 1

    def _plan(self, now: float, reason: str, *, permanent: bool = False) -> None:
        """Say when the process is started again, or give it up."""
        delay = min(FIRST_DELAY * 2 ** (self.failures - 1), LONGEST_DELAY) if self.failures else 0.0
        if permanent or self.failures > MOST_FAILURES:
            raise CannotStart(f"{reason}; see {self.process.log}")
        logger.warning(f"{reason}; it is started again in {delay:.0f} s")
        self._due = now + delay
