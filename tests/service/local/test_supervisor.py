"""The supervisor over processes of its own making: what it gives up, and what it does with their logs."""

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from service import address
from service.domain.errors import CannotStart
from service.local.process import Process, wait_until
from service.local.supervisor import PRIVATE, Stack


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A stack that has started nothing yet and rotates logs of more than ten bytes."""
    monkeypatch.setenv("UNLEARND_LOG_MAX_BYTES", "10")
    stack = Stack(tmp_path / "data")
    yield stack
    stack.stop()


def add(stack: Stack, code: str) -> Process:
    """Add a process that runs a line of Python."""
    process = Process("part", [sys.executable, "-Sc", code], stack.data / "logs" / "part.log")
    process.start()
    stack._processes.append(process)
    return process


def test_a_part_that_cannot_start_ends_the_stack_with_its_last_line(stack):
    """Its exit code says that to start it again changes nothing."""
    process = add(stack, "print('UNLEARND_X is not set'); raise SystemExit(2)")
    with pytest.raises(CannotStart, match=r"part ended with 2: UNLEARND_X is not set; see .*part\.log"):
        stack.watch()
    assert process.exited() == 2


def test_a_part_that_ends_while_it_starts_is_named_with_its_last_line(stack, monkeypatch):
    """Nobody has to look into the log for the cause."""
    process = Process("part", [sys.executable, "-Sc", "print('no room')"], stack.data / "logs" / "part.log")
    monkeypatch.setattr(stack, "_make_process", lambda *_: process)
    with pytest.raises(CannotStart, match="part does not start: no room; see "):
        stack._start_process("part", stack.data, lambda: False)


def test_a_large_log_is_rotated_while_its_process_runs(stack):
    """The process goes on, and writes to the log that it has."""
    go_on = stack.data / "go-on"
    wait = (
        f"import os, time\nprint('x' * 100, flush=True)\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
    )
    process = add(stack, f"{wait}print('new', flush=True); time.sleep(600)")
    watching = threading.Thread(target=stack.watch)
    watching.start()
    try:
        assert wait_until((stack.data / "logs" / "part.log.1").exists, 60)
        assert wait_until(lambda: process.log.stat().st_size == 0, 60)
        go_on.touch()
        assert wait_until(lambda: process.log.read_text() == "new\n", 60)
    finally:
        stack.stopping.set()
        watching.join()
        process.wait(0)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    """A file in its place stops root, too."""
    (tmp_path / "data").write_text("")
    with pytest.raises(NotADirectoryError):
        Stack(tmp_path / "data")


def test_only_the_api_has_the_socket(stack, monkeypatch):
    """No other part could answer in its place."""
    monkeypatch.setenv("UNLEARND_DATABASE_URL", "postgresql://nobody@/nowhere")
    stack._lock()
    stack._listener = address.listen("127.0.0.1", 0)
    parts = {name: stack._make_process(name, stack._socket_folder()) for name in ("api", "control", "compute")}
    assert [len(parts[name].pass_fds) for name in parts] == [1, 0, 0]
    assert not os.get_inheritable(stack._listener.fileno())


@pytest.fixture
def data():
    """A data folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-t-") as place:
        yield Path(place).resolve() / "data"


def test_a_stack_registers_from_its_data_folder_and_from_what_the_operator_names(data, monkeypatch):
    """The operator's folders stay, and the stack's own folders are closed, also where the operator closed others."""
    monkeypatch.delenv("UNLEARND_CORPUS_ROOTS")
    monkeypatch.setenv("UNLEARND_MODEL_ROOTS", "/models:relative")
    monkeypatch.setenv("UNLEARND_PRIVATE_DIRS", "/models/secret")
    environment = Stack(data, port=1).environment
    assert environment["UNLEARND_MODEL_ROOTS"] == f"/models:relative:{data}"
    assert environment["UNLEARND_CORPUS_ROOTS"] == str(data)
    own = [str(data / name) for name in PRIVATE]
    assert environment["UNLEARND_PRIVATE_DIRS"].split(":") == ["/models/secret", *own]
    assert {path.name for path in data.iterdir()} <= set(PRIVATE)
