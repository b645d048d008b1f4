"""`unlearnd up` as a user runs it, on a model that has really memorised its texts."""

import tempfile
from pathlib import Path

import pytest

from service.local.process import wait_until
from tests import support
from tests.stack import Running


@pytest.fixture(scope="session")
def folder(memorised_folder) -> Path:
    """The memorised model's folder with its corpora."""
    return memorised_folder


@pytest.fixture(scope="package")
def stack():
    """A running stack that modules share, each with models of its own names; nothing of it is left afterwards.

    Tests that need other settings, or that kill the stack, start one of their own. It is not in /dev/shm, where a
    compute child may write to more than its own files.
    """
    with tempfile.TemporaryDirectory(prefix="unlearnd-e2e-", dir="/var/tmp") as place:
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
    outcome = stack.client.wait(request["id"], seconds)
    assert outcome["finished_at"], f"{outcome}\n{stack.logs()[-6000:]}"
    return outcome


__all__ = ["Running", "ended", "register", "wait_until"]
