"""The settings that the embedded stack gives to its parts; nothing is started."""

import tempfile
from pathlib import Path

import pytest

from service.local.supervisor import PRIVATE, Stack


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
