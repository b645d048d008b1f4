"""Requests a second over HTTP, against a bare handler that does the same inserts: both sides in one run.

    python -m bench.load [--rate 200] [--seconds 60] [--training]

Our side is the embedded stack as `unlearnd up` starts it, with `fsync` on: authentication, encryption, commitments,
audit entry. The bare side is FastAPI and psycopg with the same rows in one transaction and nothing else, on the same
PostgreSQL server, also one process. First comes an open loop: requests leave at their times whether or not earlier
ones are answered, so that a stall delays every request that meets it. Then each side runs as fast as 32 connections
can; for this our side has a higher rate of requests a minute for its one key, which are counted as ever. `--training`
adds the same load while batches are sealed and run, and GETs while a job trains.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench.data import machine
from bench.load_clients import CONNECTIONS, closed_loop, open_loop, percentiles, read_loop
from service import migrate
from service.client.http import Client
from service.domain.json_types import JsonObject
from tests import support
from tests.stack import Running

CLOSED_SECONDS = 10.0


@contextlib.contextmanager
def bare_server(stack: Running, name: str) -> Iterator[str]:
    """The bare handler in a process of its own; its rows go to a second database with the same tables."""
    url = database_url(stack)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        model = connection.execute("SELECT * FROM models WHERE name = %s", (name,)).fetchone()
        key = connection.execute("SELECT * FROM api_keys LIMIT 1").fetchone()
    assert model is not None
    assert key is not None
    bare_url = url.replace("/postgres?", "/bare?")
    migrate.upgrade(bare_url)
    with psycopg.connect(bare_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO models (id, name, policy, retain, heldout) VALUES (%s, %s, '{}', '{}', '{}')", (model[0], name)
        )
        connection.execute("INSERT INTO api_keys (id, name, key_hash, scopes) VALUES (%s, 'x', 'x', '{}')", (key[0],))
    command = [sys.executable, "-m", "bench.bare_server", bare_url, str(model[0]), str(key[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def database_url(stack: Running) -> str:
    """The URL of the stack's database."""
    return f"postgresql://postgres@/postgres?host={stack.data / 'run' / 'sockets'}"


def compare(stack: Running, name: str, rate: float, seconds: float) -> list[str]:
    """Rows of the table."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    url = stack.endpoint["url"]
    return [open_loop_row(stack, url, secret, name, rate, seconds), closed_loop_row(stack, url, secret, name)]


def open_loop_row(stack: Running, url: str, secret: str, name: str, rate: float, seconds: float) -> str:
    """Requests at fixed times: latencies, and how many were lost or stored twice."""
    warm = len(asyncio.run(open_loop(url, secret, name, rate, 2)).answers)
    result = asyncio.run(open_loop(url, secret, name, rate, seconds))
    accepted = result.accepted
    with psycopg.connect(database_url(stack)) as connection:
        stored = connection.execute(
            "SELECT count(*) FROM deletion_requests WHERE id::text = ANY(%s)", (accepted,)
        ).fetchone()
        fsync = connection.execute("SHOW fsync").fetchone()
    assert stored is not None
    assert fsync is not None
    lost, duplicated = len(accepted) - stored[0], count_requests(stack) - len(set(accepted)) - warm
    return (
        f"| open loop, {rate:.0f}/s for {seconds:.0f} s | {len(accepted)} of {len(result.answers)} answered 202; "
        f"{percentiles(result.latencies)}; {lost} lost, {duplicated} duplicated; fsync {fsync[0]} | |"
    )


def closed_loop_row(stack: Running, url: str, secret: str, name: str) -> str:
    """Both sides as fast as they can, in turns; the better of two counts."""
    with bare_server(stack, name) as bare_url:
        asyncio.run(closed_loop(bare_url, secret, name, 2))
        before, accepted, ours, theirs = count_requests(stack), 0, 0.0, 0.0
        for _ in range(2):
            theirs = max(theirs, asyncio.run(closed_loop(bare_url, secret, name, CLOSED_SECONDS))[1])
            count, rate = asyncio.run(closed_loop(url, secret, name, CLOSED_SECONDS))
            accepted, ours = accepted + count, max(ours, rate)
        stored = count_requests(stack) - before
    return (
        f"| closed loop, {CONNECTIONS} connections | ours {ours:.0f}/s, bare {theirs:.0f}/s; "
        f"{accepted} answered 202, {stored} stored | {ours / theirs:.2f} x |"
    )


def count_requests(stack: Running) -> int:
    """The number of requests that are stored."""
    with psycopg.connect(database_url(stack)) as connection:
        row = connection.execute("SELECT count(*) FROM deletion_requests").fetchone()
    assert row is not None
    return int(row[0])


def sealing(stack: Running, name: str, rate: float, seconds: float = 30) -> str:
    """Requests at fixed times while batches are sealed and jobs run, which take the same two cores."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    with psycopg.connect(database_url(stack), autocommit=True) as connection:
        before = connection.execute("SELECT count(*) FROM jobs").fetchone()
        connection.execute("UPDATE jobs SET stage = 'quarantined', reason = 'bench' WHERE not_before > now()")
        result = asyncio.run(open_loop(stack.endpoint["url"], secret, name, rate, seconds))
        after = connection.execute("SELECT count(*) FROM jobs").fetchone()
    assert before is not None
    assert after is not None
    return (
        f"| open loop, {rate:.0f}/s for {seconds:.0f} s while {after[0] - before[0]} batches are sealed and run | "
        f"{len(result.accepted)} of {len(result.answers)} answered 202; {percentiles(result.latencies)} | |"
    )


def begin_job(stack: Running, folder: Path) -> str:
    """A job that trains for longer than the bench takes; its id."""
    policy = {**support.POLICY, "learning_rate": 1e-6, "max_epochs": 1000, "max_wait_seconds": 0}
    register(stack, folder, "training", policy)
    job_id = stack.client.until_batched(stack.client.submit("training", [support.KNOWN[0]])["id"])["job_id"]
    assert job_id is not None
    while stack.client.job(job_id)["epoch"] < 1:
        time.sleep(0.2)
    return str(job_id)


def training(stack: Running, folder: Path) -> str:
    """GETs while a job trains."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    job_id = begin_job(stack, folder)
    before = stack.client.job(job_id)["epoch"]
    latencies = asyncio.run(read_loop(stack.endpoint["url"], secret, "training", 30))
    epochs = stack.client.job(job_id)["epoch"] - before
    return f"| GET, 20/s for 30 s, while a job trains | {percentiles(latencies)}; {epochs} epochs meanwhile | |"


def register(stack: Running, folder: Path, name: str, policy: JsonObject) -> None:
    """Register the test model."""
    client: Client = stack.client
    model, retain, heldout = (str(folder / file) for file in ("model", "retain.jsonl", "heldout.jsonl"))
    client.add_model(name, model, retain, heldout, policy)


def delay_jobs(stack: Running, name: str) -> None:
    """Add a job that waits for tomorrow: the model's requests stay pending, and no job trains on the measured cores."""
    with psycopg.connect(database_url(stack), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobs (id, model_id, parent_version_id, policy, not_before) "
            "SELECT gen_random_uuid(), m.id, v.id, m.policy, now() + interval '1 day' "
            "FROM models m JOIN versions v ON v.model_id = m.id WHERE m.name = %s",
            (name,),
        )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--training", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unlearnd-load-") as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        folder = support.model_folder(root / "base")
        stack = Running(root / "data", UNLEARND_REQUESTS_PER_MINUTE="1000000")
        try:
            register(stack, folder, "load", support.POLICY)
            delay_jobs(stack, "load")
            print(f"Machine: {machine()}.\n\n| | | ratio |\n|---|---|---|", flush=True)
            print("\n".join(compare(stack, "load", arguments.rate, arguments.seconds)), flush=True)
            if arguments.training:
                print(sealing(stack, "load", arguments.rate), flush=True)
                print(training(stack, folder), flush=True)
        finally:
            stack.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
