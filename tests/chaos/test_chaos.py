"""A bounded part of the matrix that `make chaos` runs whole, and what else must hold under faults."""

import itertools
import os
import random
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from service.db.leases import FENCES
from service.local.process import wait_until
from tests import ROOT, support
from tests.chaos.faults import APPLIES, CASES, POINTS, UPKEEP, Case
from tests.chaos.machines import helpers
from tests.chaos.run import NEEDS_MOUNT, POLICY, run_case
from tests.chaos.stack import EXECUTING, TIMEOUT_SECONDS, TIMES, Chaos

SEED = int(os.environ.get("UNLEARND_CHAOS_SEED", "4"))
HOW_MANY, AT_ONCE = 8, 1  # cases in `make test-all` and in `make test`


@contextmanager
def started(base: Path, *, mount: bool, s3: bool = False, **times: str) -> Iterator[Chaos]:
    """A stack of which nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-chaos-") as place:
        Path(place).chmod(0o755)
        running = Chaos(Path(place), base, mount=mount, s3=s3, **times)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def stack(base):
    """A stack to be harmed."""
    with started(base, mount=True) as running:
        yield running


@pytest.fixture(scope="module")
def patient(base):
    """A stack whose leases outlast a busy machine: a job is claimed again only if something is wrong."""
    with started(base, mount=False, UNLEARND_LEASE_SECONDS="60", UNLEARND_STALL_SECONDS="300") as running:
        yield running


def register(stack: Chaos, name: str, model: Path | None = None, **policy) -> None:
    """Register the memorised model, or another one with its texts."""
    paths = [
        str(model or stack.model / "model"),
        *(str(stack.model / f"{part}.jsonl") for part in ("retain", "heldout")),
    ]
    stack.running.client.add_model(name, *paths, {**POLICY, **policy})


def test_the_matrix_is_as_large_as_it_should_be():
    """At least twelve points and sixty cases; every point is killed at, and loses its broker."""
    assert len(POINTS) >= 12
    assert len(CASES) >= 60
    assert set(APPLIES["kill"]) == set(APPLIES["broker wiped"]) == set(POINTS)
    assert set().union(*APPLIES.values()) == set(POINTS)


def test_every_point_that_has_a_name_is_in_the_matrix():
    """A transaction that is given a name, and a place that says `reach`, cannot be left out; nor can one be made up."""
    code = "\n".join(path.read_text() for part in ("service", "worker") for path in (ROOT / part).rglob("*.py"))
    named = set(re.findall(r'reach\("([a-z._]+)"\)', code))
    transactions = set(re.findall(r'transaction\("([a-z_]+)"', code)) | {"accept", "claim", "claim_control"}
    transactions |= {"unlearn", "merge", "verify"}  # the stages, by their own names
    named |= {f"{name}.{when}" for name in transactions for when in ("commit", "committed")}
    assert named == set(POINTS) - {EXECUTING} | set(UPKEEP)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["compute", "control"])
def test_a_stop_ends_within_thirty_seconds_and_keeps_nothing(patient, part):
    """SIGTERM in mid-epoch: the job is handed back and claimed again; at a release that is renamed: it is published.

    Nobody waits for its lease to run out: who held the job has let go of it by then.
    """
    register(patient, part)
    point = {"compute": "child.epoch", "control": "publish.renamed"}[part]
    patient.arm(point)
    request = patient.submit(part, support.KNOWN[4])
    patient.halted(point)
    job_id = patient.running.client.request(request["id"])["job_id"]
    owner = "SELECT owner, lease_expires_at FROM jobs WHERE id = %s"
    with patient.connect() as connection:
        held = connection.execute(owner, [job_id]).fetchone()
    leader = patient.leader(patient.part(part))
    leader.terminate()
    if part == "control":
        patient.release()
    assert wait_until(lambda: not leader.is_running(), 30), patient.tail()
    with patient.connect() as connection:
        assert connection.execute(owner, [job_id]).fetchone()[0] != held[0]
        assert connection.execute("SELECT now() < %s", [held[1]]).fetchone()[0]  # it was not the lease that ended
    patient.release()
    assert patient.ended() == []
    with patient.connect() as connection:
        ((fence, stage),) = connection.execute("SELECT fence, stage FROM jobs WHERE id = %s", [job_id]).fetchall()
    assert stage == "done"
    claims = fence // FENCES
    assert claims == 2 if part == "control" else claims > 2  # a worker that stops may claim it once more
    assert patient.running.client.request(request["id"])["status"] == "completed"
    assert patient.settled() == []


@pytest.mark.parametrize(
    "number", [*range(AT_ONCE), *(pytest.param(n, marks=pytest.mark.slow) for n in range(AT_ONCE, HOW_MANY))]
)
@pytest.mark.slow
def test_a_seeded_part_of_the_matrix(stack, number):
    """Eight cases that the seed picks, the first of them in `make test`, each held against every invariant."""
    case = random.Random(SEED).sample(CASES, HOW_MANY)[number]
    if case.fault in NEEDS_MOUNT and not stack.mounted:
        pytest.skip("this user may not mount a file system")
    assert run_case(stack, case, random.Random(f"{SEED} {case}")) == [], f"{case}\n{stack.tail()}"


@pytest.fixture(scope="module")
def on_s3(base):
    """A stack whose parts share a bucket of an S3 server, and no folder."""
    with started(base, mount=True, s3=True) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("point", ["child.epoch", "certify.committed", "publish.staged", "publish.commit"])
def test_a_kill_on_machines_that_share_a_bucket(on_s3, point):
    """A part of the matrix that `make chaos S3=1` runs whole."""
    case = Case(point, "kill")
    assert run_case(on_s3, case, random.Random(f"{SEED} {case}")) == [], f"{case}\n{on_s3.tail()}"


def weights(stack: Chaos, name: str) -> str:
    """The digest of the newest version's weights."""
    files = stack.running.client.version(name)["files"]
    (digest,) = [f["sha256"] for f in files if Path(f["path"]).match("model/*.safetensors")]
    return digest


@pytest.mark.slow
def test_a_killed_and_resumed_run_gives_the_same_bytes(stack):
    """The child is killed after its second epoch; the version's weights are those of a run that nobody disturbed."""
    policy = {"learning_rate": 5e-4, "epoch_checks": 1}
    for name, killed in (("undisturbed", False), ("disturbed", True)):
        register(stack, name, **policy)
        if killed:
            stack.arm("child.epoch")
        request = stack.submit(name, support.KNOWN[1])
        if killed:
            first = stack.halted("child.epoch")
            stack.arm("child.epoch")
            stack.release()
            assert stack.halted("child.epoch") == first
            stack.arm("child.epoch")
            stack.killed(first)
            assert stack.halted("child.epoch") != first
            (kept,) = (stack.data / "storage" / "work").glob("*/*/checkpoint-*.pt")
            assert kept.name == "checkpoint-3-0.pt"  # it went on; one that began anew would be at its first
            stack.release()
        assert stack.ended() == []
        outcome = stack.running.client.request(request["id"])
        assert (outcome["status"], outcome["version"]) == ("completed", 1), stack.tail()
        job = stack.running.client.job(outcome["job_id"])
        assert job["epoch"] > 2  # otherwise nothing was left to resume
    assert weights(stack, "disturbed") == weights(stack, "undisturbed")
    assert stack.settled() == []


@pytest.mark.slow
def test_poison_work_does_not_block_another_model(stack):
    """While a job that can make no folder fails attempt after attempt, another's request completes; then it is given up
    with its reason, and its request tried again once that is removed."""
    client = stack.running.client
    register(stack, "poisoned")
    register(stack, "healthy")
    stack.arm("claim.committed")
    poison = stack.submit("poisoned", support.KNOWN[2])
    stack.halted("claim.committed")
    in_the_way = stack.data / "storage" / "work" / client.request(poison["id"])["job_id"]
    in_the_way.write_text("a file where a folder should be")
    good = stack.submit("healthy", support.KNOWN[3])
    stack.release()
    assert client.wait(good["id"], TIMEOUT_SECONDS)["status"] == "completed", stack.tail()
    seen = client.request(poison["id"])
    assert seen["finished_at"] is None, (seen, stack.tail())  # the other was served between its attempts
    outcome = client.wait(poison["id"], TIMEOUT_SECONDS)
    assert (outcome["status"], outcome["verdict"]) == ("failed", "NOT_TESTED")
    assert (outcome["reason"], client.job(outcome["job_id"])["stage"]) == ("FileExistsError", "quarantined")
    assert client.job(outcome["job_id"])["attempts"] == int(TIMES["UNLEARND_MAX_ATTEMPTS"])
    in_the_way.unlink(missing_ok=True)
    client.retry_job(outcome["job_id"])
    assert stack.ended() == []
    assert client.request(poison["id"])["status"] == "completed"
    assert stack.settled() == []


@pytest.fixture
def without_bos(base, tmp_path) -> Path:
    """The model, whose tokenizer begins a text with nothing: one token alone cannot be measured."""
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(base / "model", tmp_path / "model"))
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_two_compute_workers_never_run_one_job_at_a_time_twice(patient, without_bos):
    """200 jobs, two workers, every message four times: nobody runs a job beside another.

    Whoever runs a job has claimed it first, and every claim counts its fence up. So each job has exactly two: one to
    compute and one to certify, each claimed by one worker alone over all logs. The texts are too short to be measured,
    which a compute child has to find out.
    """
    stack = patient
    models = [f"two-{n}" for n in range(10)]
    for name in models:
        register(stack, name, without_bos, max_batch_records=1)
    with helpers(stack):
        for _ in range(20):
            for name in models:
                stack.submit_short(name)
        flood = threading.Event()

        def repeat() -> None:
            while not flood.wait(0.5):
                with stack.connect() as connection:
                    active = connection.execute("SELECT id, stage FROM jobs WHERE stage NOT IN ('done', 'quarantined')")
                    for job_id, _ in active.fetchall():
                        for step in ("unlearn", "certify") * 4:
                            stack.send(step, str(job_id))

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            assert stack.ended(1800) == []
        finally:
            flood.set()
            thread.join()
    with stack.connect() as connection:
        rows = connection.execute(
            "SELECT j.id, j.fence / %s, j.outcome FROM jobs j JOIN models m ON m.id = j.model_id"
            " WHERE m.name LIKE 'two-%%'",
            [FENCES],
        ).fetchall()
    jobs, rows = {str(row[0]) for row in rows}, [row[1:] for row in rows]
    assert len(rows) == 200
    assert set(rows) == {(2, "rejected")}
    logs = [(stack.data / "logs" / f"{name}.log").read_text() for name in ("compute", "helpers", "control")]
    claims = [re.findall(r"event=claimed job=(\S+) fence=(\d+)", log) for log in logs]
    of_jobs = [claim for claim in itertools.chain(*claims) if claim[0] in jobs]
    assert len(of_jobs) == len(set(of_jobs)) == 400
    assert min(map(len, claims[:2])) > 20  # both did their share
    assert stack.settled() == []
