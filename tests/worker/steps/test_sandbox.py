"""What the compute child can reach: its inputs and its working folder; no credential, no key, no network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from worker.steps.sandbox import Sandbox, child_environment, host_sandbox

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted",
    "AWS_SESSION_TOKEN": "planted",
    "HF_TOKEN": "planted",
    "GOOGLE_APPLICATION_CREDENTIALS": "planted",
    "OTEL_EXPORTER_OTLP_HEADERS": "planted",
    "PGPASSWORD": "planted",
    "NVIDIA_API_KEY": "planted",
    "UNLEARND_DATABASE_URL": "planted",
    "UNLEARND_ALERT_SECRET": "planted",
}
PROBE = """
import json, os, socket, sys
from pathlib import Path

key, retain, work, parent, port = sys.argv[1:]

def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"

print(json.dumps({
    "key": tried(lambda: Path(key).read_bytes()),
    "retain": tried(lambda: Path(retain).read_bytes()),
    "write": tried(lambda: (Path(work) / "new").write_text("x")),
    "link": tried(lambda: os.link(Path(work) / "new", Path(work) / "linked")),
    "write outside": tried(lambda: Path(retain).write_text("x")),
    "environment": tried(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
    "network": tried(lambda: socket.create_connection(("127.0.0.1", int(port)), 2)),
}))
"""


def probed(sandbox: Sandbox, place: Path, port: int) -> dict[str, str]:
    """What a child in this sandbox could do."""
    key, retain, work = place / "kek", place / "retain", place / "work"
    key.write_text("key")
    retain.write_text("texts")
    work.mkdir()
    arguments = [sys.executable, "-c", PROBE, *map(str, (key, retain, work, os.getpid(), port))]
    command = sandbox.command(arguments, readable=[retain], writable=[work])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def port():
    """A port of this host at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.skipif(bool(host_sandbox().missing), reason="this kernel or its util-linux cannot confine")
def test_a_confined_child_reaches_its_inputs_alone(port):
    """It reads what it is given and writes its working folder; keys, its parent's environment and networks are shut."""
    with TemporaryDirectory(dir="/var/tmp") as place:  # not in /dev/shm: a child may write there
        shut, opened = (Path(place) / name for name in ("shut", "opened"))
        shut.mkdir()
        opened.mkdir()
        assert set(probed(Sandbox(), opened, port).values()) == {"done"}
        confined = probed(host_sandbox(), shut, port)
    assert confined == {
        "key": "PermissionError",
        "retain": "done",
        "write": "done",
        "link": "done",
        "write outside": "PermissionError",
        "environment": "PermissionError",
        "network": "OSError",
    }


def test_a_child_gets_no_credential(tmp_path):
    """Variables pass by a list: those of Python and torch do, and whatever else the worker has does not."""
    passed = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C.UTF-8"}
    environment = child_environment(PLANTED | passed, tmp_path)
    assert environment.items() >= passed.items()
    assert "planted" not in environment.values()
    assert (environment["HF_HUB_OFFLINE"], environment["TMPDIR"]) == ("1", str(tmp_path))
