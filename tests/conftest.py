"""What all tests share: one thread a process, the memorised model of a run, and which tests share a process."""

import fcntl
import gc
import logging
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each would fight over two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
gc.set_threshold(50_000, 10, 10)  # to look through all that the libraries keep took an eighth of the tests' time

ON_THE_SHARED_STACK = (
    "tests/e2e/test_client.py",
    "tests/e2e/test_hub.py",
    "tests/e2e/test_path.py",
    "tests/e2e/test_up.py",
)

SHARES_A_FIXTURE = "tests/bench/test_simulator.py"  # that takes long to make


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Send the tests of one running stack to one process, so that no stack is started twice; the rest one by one.

    (`--dist loadgroup` would do it by marks, but pytest 9.2 does not show them to pytest-xdist 3.8.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneProcessPerStack(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path in ON_THE_SHARED_STACK:
                return "the shared stack"
            if path == SHARES_A_FIXTURE:
                return path
            own_stack = path.startswith(("tests/e2e/", "tests/chaos/")) and path != "tests/e2e/test_pages.py"
            return path if own_stack else nodeid

    return OneProcessPerStack(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session")
def log_level() -> int:
    """The log level with which this process began."""
    return logging.getLogger().level


@pytest.fixture(autouse=True)
def unchanged_log_level(log_level):
    """Let a test fail that leaves this process another log level: in a later test a line would be missing."""
    yield
    assert logging.getLogger().level == log_level


@pytest.fixture(scope="session", autouse=True)
def registration_roots(tmp_path_factory) -> Path:
    """The folder of the tests' files, as the place from which models and corpora may be registered."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # the folder that the test processes share
    os.environ["UNLEARND_MODEL_ROOTS"] = os.environ["UNLEARND_CORPUS_ROOTS"] = str(place)
    return place


@pytest.fixture(scope="session")
def memorised_folder(registration_roots) -> Path:
    """The memorised model's folder with its corpora, made once a run by the process that needs it first.

    Tests leave it as it is.
    """
    from tests import support  # torch: most tests do without it

    place = registration_roots
    with (place / "memorised.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "memorised").exists():
            support.model_folder(place / "memorised.part").rename(place / "memorised")
    return place / "memorised"
