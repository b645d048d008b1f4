"""The client's command line starts fast: it imports no database, no queue and no web framework."""

import json
import os
import subprocess
import sys

import pytest

SERVER_PACKAGES = {
    "alembic",
    "celery",
    "cryptography",
    "fastapi",
    "kombu",
    "opentelemetry",
    "psycopg",
    "redis",
    "sqlalchemy",
    "structlog",
    "uvicorn",
}
LIST_MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
UNREACHABLE = {"UNLEARND_URL": "http://127.0.0.1:9", "UNLEARND_API_KEY": "k"}


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has imported after this code."""
    command = [sys.executable, "-c", f"{code}\n{LIST_MODULES}"]
    done = subprocess.run(command, env=os.environ | UNREACHABLE, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def top_level(modules: set[str]) -> set[str]:
    """The packages that these modules belong to."""
    return {module.partition(".")[0] for module in modules}


def test_the_command_line_and_the_clients_import_no_server_package():
    """And nothing of rich that only progress bars and tables need."""
    modules = imported_by("import service.cli, service.client")
    assert not top_level(modules) & SERVER_PACKAGES
    assert not {"service.db", "service.steps", "service.config", "service.bootstrap"} & modules
    only_command_line = imported_by("import service.cli")
    assert not {"httpx", "rich.progress", "rich.table"} & only_command_line


@pytest.mark.parametrize(
    "arguments",
    [
        "requests show 1",
        "requests list",
        "requests submit --model m --text t",
        "models list",
        "models download m d",
        "corpora list m",
        "corpora add m c d",
        "requests submit --model m --file people.csv",
        "jobs list",
        "jobs show 1",
        "jobs cancel 1",
        "jobs retry 1",
        "requests resolve 1 --reason other",
        "models policy m --set rank=4",
        "versions list m",
        "versions withdraw m 1 --reason faulty",
        "keys list",
        "log export f",
        "keys create n --scope read",
        "keys revoke 1",
    ],
)
def test_a_client_command_imports_no_server_package(arguments, tmp_path, monkeypatch):
    """Even when it has run, up to the call that finds no service."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people.csv").write_text("text\nt\n")
    run = (
        "import httpx\n"
        "def refuse(self, *_, **__): raise SystemExit(0)\n"
        "httpx.Client.request = refuse\n"
        "from service.cli import app\n"
        f"try: app({arguments.split()!r})\n"
        "except SystemExit as end: assert end.code == 0, end"
    )
    assert not top_level(imported_by(run)) & SERVER_PACKAGES


@pytest.mark.parametrize("command", ["verify", "verify-log", "verify-record"])
def test_an_offline_check_imports_no_database_and_no_network(command):
    """The verifier needs only files."""
    options = {
        "verify": ["nowhere"],
        "verify-log": ["nowhere", "--trust", "nowhere"],
        "verify-record": ["nowhere", "--receipt", "nowhere", "--trust", "nowhere", "--text", "t"],
    }
    run = (
        "from service.cli import app\n"
        f"try: app({[command, *options[command]]!r})\n"
        "except SystemExit as end: assert end.code not in (0, 2), end"
    )
    modules = top_level(imported_by(run))
    assert not modules & {"alembic", "celery", "fastapi", "httpx", "kombu", "psycopg", "redis", "sqlalchemy"}
