"""`unlearnd up` as a user runs it, for the tests that need the whole stack."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from service.client.http import Client

ROOTS = ("UNLEARND_MODEL_ROOTS", "UNLEARND_CORPUS_ROOTS")


class Running:
    """A running stack. It registers what lies beside its data folder, or where the tests keep their files."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        """Start `unlearnd up` on `data`."""
        self.data = data
        program = str(Path(sys.executable).parent / "unlearnd")
        command = [program, "up", "--data-dir", str(data), "--port", "0", *options]
        roots = {name: f"{data.parent}:{os.environ.get(name, '')}" for name in ROOTS}
        environment = {**os.environ, "UNLEARND_CALLBACK_ALLOW_PRIVATE": "true", **roots, **environment}
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
        matching = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            line = " ".join(process.info["cmdline"] or [])
            ours = str(self.data) in line or str(self.data) in str((process.info["environ"] or {}).get("TMPDIR"))
            if ours and word in line:
                matching.append(process)
        return matching

    def logs(self) -> str:
        """Everything that was logged, for failure messages and for what may not be in it."""
        return "\n".join(p.read_text(errors="replace") for p in sorted((self.data / "logs").glob("*.log")))
