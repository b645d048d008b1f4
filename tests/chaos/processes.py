"""API, control worker and compute worker as processes of their own, of this release or of another."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from service.local import valkey
from service.local.process import wait_until
from tests.chaos.stack import TIMES
from tests.service.served import free_port

ROOT = Path(__file__).parents[2]
CELERY = ["celery", "-A", "worker.app", "worker", "--pool", "threads", "--loglevel", "INFO"]
MODULES = {
    "control": [*CELERY, "-Q", "control", "-n", "control@%h", "-B"],
    "compute": [*CELERY, "-Q", "gpu", "-n", "compute@%h"],
}
MIGRATE = "from service.cli import main; import sys; sys.argv = ['unlearnd', 'migrate']; main()"
KEYS = """
from service.bootstrap import build, create_keys
from service.config import Settings
from service.db import api_keys
services = build(Settings())
create_keys(services.settings)
with services.db.transaction() as session:
    print(api_keys.create(session, "chaos", ["admin"])[1])
services.close()
"""


class Parts:
    """Processes in a folder, with a broker."""

    def __init__(self, place: Path, *, database: str, owner: str, **more: str) -> None:
        """Start the broker.

        Args:
            place: The folder.
            database: The URL of the database as the application's role.
            owner: The same as its owner.
            more: Further settings.
        """
        sockets = place / "s"
        sockets.mkdir()
        self._place, self._broker = place, valkey.process(place / "valkey", sockets, place / "valkey.log")
        self._broker.start()
        assert wait_until(lambda: valkey.is_ready(sockets), 30)
        self.settings = {
            "DATABASE_URL": database,
            "OWNER_DATABASE_URL": owner,
            "BROKER_URL": valkey.url(sockets),
            "STORAGE_DIR": str(place / "storage"),
            "KEYS_DIR": str(place / "keys"),
            **more,
        }
        self._environment = {**os.environ, **TIMES, **{f"UNLEARND_{k}": value for k, value in self.settings.items()}}
        self._key = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def migrate(self, source: Path = ROOT) -> None:
        """What an operator runs before an upgrade."""
        self._run(MIGRATE, source)

    def make_keys(self, source: Path = ROOT) -> None:
        """Make the service's keys, and an API key."""
        self._key = self._run(KEYS, source).strip()

    def start(self, name: str, source: Path = ROOT) -> None:
        """Start `control` or `compute`."""
        module = MODULES[name] + (["--schedule", str(self._place / "beat")] if name == "control" else [])
        self._start(name, module, source)

    def start_api(self, name: str = "api", source: Path = ROOT) -> httpx.Client:
        """Start an API; returns a client of it."""
        port, headers = free_port(), {"Authorization": f"Bearer {self._key}"}
        self._start(name, ["service.main", "--port", str(port)], source)
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False)

    def stop(self, *names: str) -> None:
        """Ask processes to stop, and wait for their end; all of them, and the broker, if none is named."""
        for name in names or self._processes:
            self._processes[name].terminate()
        for name in names or list(self._processes):
            self._processes.pop(name).wait(60)
        if not names:
            self._broker.ask_to_stop()
            self._broker.wait()

    def logs(self) -> str:
        """The ends of the logs, for a failure's message."""
        lines = {p.name: p.read_text(errors="replace").splitlines() for p in self._place.glob("*.log")}
        said = {name: [line for line in log if "service.access" not in line][-60:] for name, log in lines.items()}
        return "\n".join(f"--- {name}\n" + "\n".join(log) for name, log in said.items())

    def _run(self, code: str, source: Path) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **self._with(source)).stdout

    def _with(self, source: Path) -> dict[str, object]:
        return {"env": {**self._environment, "PYTHONPATH": str(source)}, "cwd": source}

    def _start(self, name: str, module: list[str], source: Path) -> None:
        with (self._place / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", *module]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, **self._with(source))
