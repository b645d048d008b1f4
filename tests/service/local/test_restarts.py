"""A process that ends by itself is started again: later each time, and not for ever."""

import resource
import signal
import sys

import psutil
import pytest

from service.domain.errors import CannotStart
from service.local.process import Process, pid_file, stop_leftover
from service.local.restarts import FIRST_DELAY, LONGEST_DELAY, MOST_FAILURES, STEADY_SECONDS, Restarter


@pytest.fixture
def make(tmp_path):
    """Make and start a process that runs a line of Python; whatever it is, it is gone afterwards."""
    made = []

    def start(code: str) -> Process:
        process = Process("part", [sys.executable, "-Sc", code], tmp_path / "part.log")
        made.append(process)
        process.start()
        return process

    yield start
    for process in made:
        process.wait(0)


def ended(process: Process) -> Process:
    """The process, once it has ended by itself."""
    process.running.wait(60)
    return process


def restarts(restarter: Restarter, seconds: float) -> bool:
    """Whether the process, which has ended, is started again so long after its end, and not before."""
    before = restarter.process.running
    now = restarter.process.started_at
    ended(restarter.process)
    restarter.look(now)
    restarter.look(now + seconds - 0.01)
    assert restarter.process.running is before
    restarter.look(now + seconds + 0.01)
    return restarter.process.running is not before


def test_each_restart_comes_later_and_then_it_is_given_up(make):
    """With the process's last line and its log, and with nothing left."""
    restarter = Restarter(make("print('no room for it', flush=True); raise SystemExit(1)"))
    for number in range(MOST_FAILURES):
        assert restarts(restarter, min(FIRST_DELAY * 2**number, LONGEST_DELAY))
    ended(restarter.process)
    with pytest.raises(CannotStart, match=r"part ended with 1: no room for it; see .*part\.log"):
        restarter.look()
    assert not pid_file(restarter.process.log).exists()


def test_a_process_that_ran_for_long_starts_from_the_first_delay(make):
    """Its earlier failures are over."""
    restarter = Restarter(make("raise SystemExit(1)"))
    for number in range(3):
        assert restarts(restarter, FIRST_DELAY * 2**number)
    ended(restarter.process)
    restarter.look(restarter.process.started_at + STEADY_SECONDS + 1)
    assert restarter.failures == 1


def test_what_no_restart_can_help_ends_at_once(make):
    """A setting that is not valid, for example: the exit code says so."""
    restarter = Restarter(ended(make("print('UNLEARND_X is not valid'); raise SystemExit(2)")))
    with pytest.raises(CannotStart, match="UNLEARND_X is not valid"):
        restarter.look()


def test_a_killed_process_starts_again_at_once_however_often(make):
    """Somebody else has killed it, so nothing may be wrong with it."""
    restarter = Restarter(make("import time; time.sleep(600)"))
    for _ in range(MOST_FAILURES + 2):
        before = restarter.process.running
        before.send_signal(signal.SIGKILL)
        ended(restarter.process)
        restarter.look()
        assert restarter.process.running is not before
        assert restarter.process.exited() is None


def test_a_full_disk_delays_a_start_and_ends_in_one_line(make, tmp_path):
    """A process that cannot be started counts as one that ended; a folder in place of its log plays the fault."""
    restarter = Restarter(make("raise SystemExit(1)"))
    ended(restarter.process)
    restarter.look(restarter.process.started_at)
    restarter.process.log = tmp_path
    for number in range(1, MOST_FAILURES):
        restarter.look(restarter.process.started_at + 1000 * number)
        assert restarter.failures == number + 1
    with pytest.raises(CannotStart, match=r"part cannot be started: .*EISDIR"):
        restarter.look(restarter.process.started_at + 1000 * MOST_FAILURES)


def test_a_process_whose_pid_file_cannot_be_written_does_not_run(tmp_path):
    """A later supervisor could not find it."""
    process = Process("part", [sys.executable, "-Sc", "import time; time.sleep(600)"], tmp_path / "part.log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            process.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert process.running.returncode == -signal.SIGKILL


def test_what_a_killed_supervisor_left_is_stopped(make):
    """By its pid file; a file that names another process stops nothing."""
    process = make("import time; time.sleep(600)")
    pid_file(process.log).write_text(f"{process.running.pid} 1.5")
    stop_leftover(process.log, signal.SIGTERM)
    assert process.exited() is None
    process.wait(0)
    process.start()
    stop_leftover(process.log, signal.SIGTERM)
    assert not psutil.pid_exists(process.running.pid)
    assert not pid_file(process.log).exists()
