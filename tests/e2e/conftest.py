"""`unlearnd up` as a user runs it, on a model that has really memorised its texts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from service.client import Client
from service.local.supervisor import wait_until
from tests import support


class Running:
    """A running stack."""

    def __init__(self, data: Path, **environment: str) -> None:
        """Start `unlearnd up` on `data`."""
        self.data = data
        command = [str(Path(sys.executable).parent / "unlearnd"), "up", "--data-dir", str(data), "--port", "0"]
        environment = {**os.environ, "UNLEARND_CALLBACK_ALLOW_PRIVATE": "true", **environment}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.ready_line = self.process.stdout.readline()
        self.endpoint = json.loads((data / "endpoint.json").read_text())
        self.client = Client(self.endpoint["url"], Path(self.endpoint["api_key_file"]).read_text())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(40)
        self.process.stdout.close()
        return code

    def processes(self, word: str) -> list[psutil.Process]:
        """Running processes of this stack whose command line holds `word`."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            line = " ".join(process.info["cmdline"] or [])
            ours = str(self.data) in line or str(self.data) in str((process.info["environ"] or {}).get("TMPDIR"))
            if ours and word in line:
                found.append(process)
        return found

    def logs(self) -> str:
        """Everything that was logged, for failure messages and for what may not be in it."""
        return "\n".join(p.read_text(errors="replace") for p in sorted((self.data / "logs").glob("*.log")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The memorised model's folder with its corpora."""
    return support.model_folder(tmp_path_factory.mktemp("memorised"))


@pytest.fixture(scope="module")
def stack():
    """A running stack on a folder of its own; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-e2e-") as place:
        running = Running(Path(place) / "data")
        try:
            yield running
        finally:
            code = running.stop()
        assert code == 0
        assert not running.processes("")
        assert not (running.data / "endpoint.json").exists()


def register(stack: Running, folder: Path, name: str, **policy) -> None:
    """Register the memorised model under a name and policy."""
    paths = [str(folder / part) for part in ("model", "retain.jsonl", "heldout.jsonl")]
    stack.client.add_model(name, *paths, {**support.POLICY, **policy})


def ended(stack: Running, request: dict, seconds: float = 180) -> dict:
    """The request in its terminal state."""
    found = stack.client.wait(request["id"], seconds)
    assert found["finished_at"], f"{found}\n{stack.logs()[-6000:]}"
    return found


__all__ = ["Running", "ended", "register", "wait_until"]
