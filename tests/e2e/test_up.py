"""Starting, stopping and starting again on the same folder."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.domain.errors import ClientError
from service.local.process import wait_until
from service.local.supervisor import PRIVATE
from tests import support
from tests.e2e.conftest import Running, register


@pytest.mark.slow
def test_up_stops_clean_and_continues_where_it_stopped(folder):
    """The same key, the same model after a restart; a killed supervisor's leftovers are taken over."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-e2e-") as place:
        data = Path(place) / "data"
        first = Running(data)
        assert first.ready_line == f"unlearnd is ready at {first.endpoint['url']}\n"
        assert stat.S_IMODE(Path(first.endpoint["api_key_file"]).stat().st_mode) == 0o600
        assert stat.S_IMODE((data / "keys").stat().st_mode) == 0o700
        register(first, folder, "kept")
        assert first.stop() == 0
        assert not first.processes("")
        second = Running(data)
        assert second.client.version("kept")["version"] == 0
        second.client.close()
        os.kill(second.process.pid, signal.SIGKILL)
        second.process.wait()
        second.process.stdout.close()
        assert second.processes("postgres")
        third = Running(data)
        request = third.client.submit("kept", [support.people(1, seed=5)[0]])
        assert third.client.wait(request["id"], 120)["status"] == "not_memorised"
        for process in third.processes("valkey"):
            process.kill()
        again = third.client.submit("kept", [support.people(1, seed=6)[0]])
        assert third.client.wait(again["id"], 120)["status"] == "not_memorised"
        assert third.stop() == 0
        assert wait_until(lambda: not third.processes(""), 10)


def test_a_folder_is_used_by_one_supervisor(stack):
    """The second `up` on the same folder says so and stops; the first one goes on."""
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(stack.data), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 2
    assert "another unlearnd" in second.stderr
    assert (stack.data / "endpoint.json").exists()
    assert stack.client.call("GET", "/readyz") is not None


def test_models_are_registered_from_the_data_folder_but_not_from_the_stacks_own_folders(stack, folder):
    """An admin key reads neither keys nor logs, storage or tables, though all of them lie in the data folder."""
    mine = stack.data / "mine"
    assert {path.name for path in stack.data.iterdir() if path.is_dir()} == set(PRIVATE)
    shutil.copytree(folder, mine)
    try:
        register(stack, mine, "mine")
        secrets = [stack.data / name for name in PRIVATE]
        secrets += [stack.data, stack.data / "keys" / "admin.key", stack.data / "logs" / "api.log", Path("/etc/passwd")]
        for secret in secrets:
            for arguments in ((secret, mine / "retain.jsonl"), (mine / "model", secret)):
                with pytest.raises(ClientError, match=r"own files|does not lie in|regular file"):
                    stack.client.add_model("other", *map(str, arguments), str(mine / "heldout.jsonl"), {})
            with pytest.raises(ClientError, match=r"own files|does not lie in"):
                stack.client.add_corpus("mine", "crm", str(secret))
    finally:
        shutil.rmtree(mine)
