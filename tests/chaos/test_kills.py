"""Twenty rounds of SIGKILL within two minutes of work: nothing fails that had nothing wrong in it."""

import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests import support
from tests.chaos.run import POLICY
from tests.chaos.stack import PARTS, Chaos

ROUNDS, PAUSES = 20, (3.0, 9.0)  # seconds between two rounds
MODELS = 3
VICTIMS = (*PARTS.values(), "worker.child", "")  # the last: all at once


def strike(stack: Chaos, word: str) -> None:
    """Kill every process with this word, but the supervisor, which an init system would start again."""
    for process in stack.running.processes(word):
        if process.pid != stack.running.process.pid:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_accepted_request_is_fulfilled_whatever_is_killed(base, seed):
    """Requests arrive meanwhile, for three models. Each process is killed alone, and all of them together."""
    chance, calm = random.Random(seed), threading.Event()
    with tempfile.TemporaryDirectory(prefix="unlearnd-chaos-") as place:
        Path(place).chmod(0o755)
        # One failure would be too many. Staged files are not garbage after two seconds, as in other faults' tests.
        stack = Chaos(Path(place), base, mount=False, UNLEARND_MAX_ATTEMPTS="1", UNLEARND_ORPHAN_SECONDS="60")
        try:
            names = [f"model-{index}" for index in range(MODELS)]
            paths = [str(base / part) for part in ("model", "retain.jsonl", "heldout.jsonl")]
            for name in names:
                stack.running.client.add_model(name, *paths, POLICY)
            with ThreadPoolExecutor(MODELS) as pool:
                asked = [pool.submit(stack.submit, name, support.KNOWN[index]) for index, name in enumerate(names)]
                for number in range(ROUNDS):
                    calm.wait(chance.uniform(*PAUSES))
                    strike(stack, chance.choice(VICTIMS))
                    if number % 7 == 6:
                        later = support.KNOWN[MODELS + number // 7]
                        asked.append(pool.submit(stack.submit, chance.choice(names), later))
                requests = [request.result(240)["id"] for request in asked]
            stack.served_again()
            assert stack.ended(600) == []
            states = [stack.running.client.request(request) for request in requests]
            failures = [line for line in stack.running.logs().splitlines() if "an attempt failed" in line]
            assert {(state["status"], state["reason"]) for state in states} == {("completed", None)}, failures
            assert stack.settled() == []
        finally:
            stack.stop()
