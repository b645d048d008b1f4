"""What all tests share: one thread a process, the memorised model of a run, and which tests stay in one process."""

import fcntl
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each would fight over two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of a running stack in one process (`--dist loadgroup`), so that no stack is started twice.

    The modules of tests/e2e share one; any other stack belongs to its module. Each page starts its own.
    """
    for item in items:
        package, module = item.path.parent.name, item.path.stem
        if package == "e2e" and "stack" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("e2e"))
        elif package in ("e2e", "chaos") and "page" not in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(module))


@pytest.fixture(scope="session")
def memorised_folder(tmp_path_factory) -> Path:
    """The memorised model's folder with its corpora, made once a run by the process that needs it first.

    Tests leave it as it is.
    """
    from tests import support  # torch: most tests do without it

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # the folder that the test processes share
    with (place / "memorised.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "memorised").exists():
            support.model_folder(place / "memorised.part").rename(place / "memorised")
    return place / "memorised"
