"""The points of the path, the faults, and which apply where."""

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from service.local.process import wait_until
from tests.chaos.stack import TIMEOUT_SECONDS, Chaos
from tests.s3 import NAME

API = (
    "accept.executing", "accept.commit", "accept.committed", "cancel.commit", "cancel.committed", "approve.commit",
    "approve.committed", "refuse.commit", "refuse.committed",
)  # fmt: skip
BATCH = ("batch.commit", "batch.committed")
CONTROL = (
    *BATCH, "claim_control.commit", "claim_control.committed", "certify.commit", "certify.committed", "proof.commit",
    "proof.committed", "publish.staged", "publish.renamed", "publish.commit", "publish.committed",
)  # fmt: skip
PERSON = ("index.commit", "index.committed", "resolve.commit", "resolve.committed")
CALLBACK = ("deliver.commit", "deliver.committed", "delivered.commit", "delivered.committed")
COMPUTE = (
    "claim.commit", "claim.committed", "unlearn.commit", "unlearn.committed", "thresholds.commit",
    "thresholds.committed", "epoch.commit", "epoch.committed", "merge.commit", "merge.committed", "verify.commit",
    "verify.committed", "report.commit", "report.committed",
)  # fmt: skip
CHILD = ("child.started", "child.measured", "child.epoch", "child.unlearned", "child.merged", "child.verified")
UPKEEP = ("collect.renamed", "rebuild.moved")  # no request comes there: `tests/service/test_collected.py` kills at both
POINTS = (*API, *PERSON, *CONTROL, *CALLBACK, *COMPUTE, *CHILD)

APPLIES: dict[str, tuple[str, ...]] = {
    "kill": POINTS,
    "broker wiped": POINTS,
    "database crash": (*API, *PERSON, *CONTROL, *CALLBACK, *COMPUTE),
    "messages": (
        *BATCH, "index.committed", "resolve.commit", "resolve.committed", "certify.committed", "publish.renamed",
        "claim.committed", "report.committed",
    ),
    "frozen": (
        "index.commit", "resolve.commit", "batch.commit", "certify.commit", "certify.committed", "publish.staged",
        "publish.renamed", "publish.commit", "publish.committed", "deliver.commit", "delivered.commit",
        "claim.committed", "epoch.committed", "report.commit", "report.committed",
    ),
    "terminated": (
        "accept.commit", "batch.commit", "publish.staged", "publish.commit", "epoch.committed", "child.epoch",
    ),
    "disk full": ("child.measured", "child.epoch", "certify.committed"),
    "read-only": ("child.epoch", "child.unlearned", "certify.committed", "publish.staged"),
    "truncated": ("child.measured", "child.epoch", "child.unlearned", "child.merged"),
    "bit flipped": ("child.measured", "child.epoch", "child.unlearned", "child.merged", "child.verified"),
    "out of memory": ("child.measured", "child.unlearned"),
    "hanging": ("child.started", "child.measured", "child.epoch", "child.merged"),
}  # fmt: skip
REFUSED = ("publish.staged", "publish.renamed", "claim.committed", "epoch.committed")  # the next thing is a write


@dataclass(frozen=True, slots=True)
class Case:
    """A fault at a point."""

    point: str
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.point}"


CASES = tuple(Case(point, fault) for fault, points in APPLIES.items() for point in points)


@contextmanager
def injected(stack: Chaos, case: Case, pid: int, chance: random.Random) -> Iterator[None]:
    """Do the harm while process `pid` is halted at the point, let it go on, and inside wait for the outcome.

    What can be undone (a full disk) is undone as soon as somebody has run into it.
    """
    process = psutil.Process(pid)
    refused = stack.refusals()
    _harm(stack, case, process, chance)
    if case.fault in ("disk full", "read-only"):
        with stack.storage.fails(case.fault):
            stack.release()
            stack.failed_attempt()
    elif case.fault == "out of memory":
        stack.release()
        stack.failed_attempt()
    elif case.fault == "hanging":  # halted for good, while its parent's heart beats
        assert wait_until(lambda: not process.is_running(), TIMEOUT_SECONDS), "nobody noticed that the child hangs"
    stack.release()
    try:
        yield
    finally:
        if case.fault == "frozen":
            process.resume()
            if case.point in REFUSED:
                assert wait_until(lambda: stack.refusals() > refused, TIMEOUT_SECONDS), "nobody refused the zombie"


def _harm(stack: Chaos, case: Case, process: psutil.Process, chance: random.Random) -> None:
    match case.fault:
        case "kill":
            process.kill()
        case "frozen":  # until everybody else has finished without it: a zombie that may change nothing
            process.suspend()
        case "terminated":
            stack.leader(process).terminate()
        case "broker wiped":
            _wipe_broker(stack)
        case "database crash":
            server = stack.part("postgres")
            server.send_signal(signal.SIGQUIT)  # its immediate mode: no checkpoint, as after a crash
            server.wait(30)  # nobody commits any more
        case "messages":
            _flood(stack, chance)
        case "truncated" | "bit flipped":
            _damage(stack, case, chance)
            if case.point != "child.verified":  # there it has measured the file already, and only has to say so
                process.kill()
        case "out of memory":
            _starve(process)


def _wipe_broker(stack: Chaos) -> None:
    server = stack.part("valkey")
    server.kill()
    server.wait()
    shutil.rmtree(stack.data / "valkey", ignore_errors=True)
    (stack.data / "valkey").mkdir()


def _flood(stack: Chaos, chance: random.Random) -> None:
    """Every message that there could be, several times and in any order."""
    with stack.connect() as connection:

        def ids(table: str, newest: str) -> list[str]:
            query = f"(SELECT id FROM {table} ORDER BY {newest} DESC LIMIT 1) UNION (SELECT id FROM {table} LIMIT 1)"
            return [str(row[0]) for row in connection.execute(query)]

        jobs, nothing = ids("jobs", "seq"), [None]
        known = {
            "batch": ids("models", "created_at"),
            "unlearn": jobs,
            "certify": jobs,
            "deliver": nothing,
            "sweep": nothing,
            "collect": nothing,
            "index": ids("corpora", "created_at"),
            "resolve": ids("deletion_requests", "seq"),
        }
    messages = [(step, identifier) for step, ids in known.items() for identifier in ids] * 4
    chance.shuffle(messages)
    for step, identifier in messages:
        stack.send(step, identifier)


def _damage(stack: Chaos, case: Case, chance: random.Random) -> None:
    """Break one of the files that the job's stages left; what was measured already is the candidate."""
    (folder,) = (stack.folder("compute") / "work").glob("*/*")
    every = "measure.json", "stages.json", "checkpoint-*.pt", "adapter.safetensors", "candidate/model/*.safetensors"
    patterns = every[-1:] if case.point == "child.verified" else every
    victim = chance.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
    content = bytearray(victim.read_bytes())
    if case.fault == "truncated":
        del content[len(content) // 2 :]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    key = f"work/{folder.parent.name}/{folder.name}/{victim.relative_to(folder)}"
    if stack.s3 and case.point != "child.verified" and stack.s3.has(key):  # what the next attempt will have
        stack.s3.client.put_object(Bucket=NAME, Key=key, Body=bytes(content))


def _starve(process: psutil.Process) -> None:
    """Let the next larger allocation fail."""
    size = process.memory_info().vms
    process.rlimit(psutil.RLIMIT_AS, (size, size))
