"""Requests a second over HTTP, against a bare handler that does the same inserts: both sides in one run.

    python -m bench.load [--rate 200] [--seconds 60] [--training]

Ours is the embedded stack as `unlearnd up` starts it, with `fsync` on: authentication, encryption, commitments, audit
entry. The bare side is FastAPI and psycopg with the same rows in one transaction and nothing else, on the same
PostgreSQL server, also one process. First an open loop: requests leave at their times whether or not earlier ones are
answered, so that a stall is seen by all who would have met it. Then each side as fast as 32 connections can; for this
ours has a higher rate of requests a minute for its one key, which are counted as ever.
`--training` adds the same load while batches are sealed and run, and GETs while a job trains.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import uvicorn
from fastapi import FastAPI
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

from bench.data import machine
from service.client.http import Client
from tests import support
from tests.stack import Running

CONNECTIONS, CLOSED_SECONDS = 32, 10.0
PATH = "/v1/deletion-requests"


class Text(BaseModel):
    """One record."""

    text: str


class Body(BaseModel):
    """A deletion request."""

    model: str
    records: list[Text]


def bare(url: str, model_id: str, key_id: str) -> FastAPI:
    """The handler that we are compared with."""
    pool = ConnectionPool(url, min_size=10, max_size=20, open=False)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool.open()
        yield
        pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH, status_code=202)
    def submit(body: Body) -> dict[str, str]:
        request_id = uuid4()
        with pool.connection() as connection:
            connection.execute(
                "INSERT INTO deletion_requests (id, model_id, api_key_id, status, regulation, received_at, due_at, "
                "records_count, ref, commitment, wrapped_key, idempotency_hash, body_hash) VALUES (%s, %s, %s, "
                "'pending', 'gdpr', now(), now() + interval '1 month', %s, %s, %s, %s, %s, %s)",
                (request_id, model_id, key_id, len(body.records), uuid4().hex, bytes(32), bytes(60),
                 os.urandom(32), bytes(32)),
            )  # fmt: skip
            for position, record in enumerate(body.records):
                connection.execute(
                    "INSERT INTO records (request_id, position, sealed) VALUES (%s, %s, %s)",
                    (request_id, position, record.text.encode()),
                )
        return {"id": str(request_id), "status": "pending"}

    return app


async def submit_one(client: aiohttp.ClientSession, name: str, number: int) -> tuple[int, str]:
    """(status, id) of one request."""
    body = {"model": name, "records": [{"text": f"{number} {support.KNOWN[number % len(support.KNOWN)]}"}]}
    async with client.post(PATH, json=body, headers={"Idempotency-Key": f"load-{uuid4().hex}"}) as answer:
        found = await answer.json()
        return answer.status, found.get("id", "")


def connection_of(url: str, secret: str, connections: int) -> aiohttp.ClientSession:
    """A client that keeps its connections; this one, because it takes little of the two cores that we measure on."""
    headers = {"Authorization": f"Bearer {secret}"}
    return aiohttp.ClientSession(url, headers=headers, connector=aiohttp.TCPConnector(limit=connections))


async def open_loop(url: str, secret: str, name: str, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at fixed times; latency counts from the time at which one was due."""
    latencies: list[float] = []
    answers: list[tuple[int, str]] = []
    async with connection_of(url, secret, 200) as client:
        started = time.perf_counter() + 0.1

        async def one(number: int) -> None:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            answers.append(await submit_one(client, name, number))
            latencies.append(time.perf_counter() - due)

        await asyncio.gather(*(one(n) for n in range(int(rate * seconds))))
    return {"answers": answers, "latencies": sorted(latencies), "seconds": time.perf_counter() - started}


async def closed_loop(url: str, secret: str, name: str, seconds: float) -> tuple[int, float]:
    """Accepted requests, and how many a second, with every connection always busy."""
    done = 0
    async with connection_of(url, secret, CONNECTIONS) as client:
        until = time.perf_counter() + seconds

        async def one(lane: int) -> None:
            nonlocal done
            number = lane
            while time.perf_counter() < until:
                status, _ = await submit_one(client, name, number)
                assert status == 202
                done += 1
                number += CONNECTIONS

        started = time.perf_counter()
        await asyncio.gather(*(one(lane) for lane in range(CONNECTIONS)))
        return done, done / (time.perf_counter() - started)


async def watch(url: str, secret: str, name: str, seconds: float, rate: float = 20) -> list[float]:
    """Latencies of GETs while something else goes on."""
    latencies: list[float] = []
    async with connection_of(url, secret, 10) as client:
        started = time.perf_counter()
        paths = [PATH + "?limit=20", f"/v1/models/{name}/versions/latest", "/v1/jobs?limit=20"]

        async def one(number: int) -> None:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            async with client.get(paths[number % len(paths)]) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            latencies.append(time.perf_counter() - due)

        await asyncio.gather(*(one(n) for n in range(int(rate * seconds))))
    return sorted(latencies)


def percentile(values: list[float], share: float) -> float:
    """Milliseconds."""
    return 1000 * values[min(len(values) - 1, int(share * len(values)))]


@contextlib.contextmanager
def bare_server(stack: Running, name: str) -> Iterator[str]:
    """The bare handler in a process of its own; its rows go to a second database with the same tables."""
    url = database_of(stack)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        model = connection.execute("SELECT * FROM models WHERE name = %s", (name,)).fetchone()
        key = connection.execute("SELECT * FROM api_keys LIMIT 1").fetchone()
    assert model is not None
    assert key is not None
    other = url.replace("/postgres?", "/bare?")
    from service import migrate

    migrate.upgrade(other)
    with psycopg.connect(other, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO models (id, name, policy, retain, heldout) VALUES (%s, %s, '{}', '{}', '{}')", (model[0], name)
        )
        connection.execute("INSERT INTO api_keys (id, name, key_hash, scopes) VALUES (%s, 'x', 'x', '{}')", (key[0],))
    command = [sys.executable, "-m", "bench.load", "--bare", other, str(model[0]), str(key[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def serve_bare(url: str, model_id: str, key_id: str) -> None:
    """Serve the bare handler on a free port, which is printed."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(bare(url, model_id, key_id), access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def database_of(stack: Running) -> str:
    """The URL of the stack's database."""
    return f"postgresql://postgres@/postgres?host={stack.data / 'run' / 'sockets'}"


def compare(stack: Running, name: str, rate: float, seconds: float) -> list[str]:
    """Rows of the table."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    url = stack.endpoint["url"]
    warm = len(asyncio.run(open_loop(url, secret, name, rate, 2))["answers"])
    found = asyncio.run(open_loop(url, secret, name, rate, seconds))
    good = [i for status, i in found["answers"] if status == 202]
    with psycopg.connect(database_of(stack)) as connection:
        held = connection.execute("SELECT count(*) FROM deletion_requests WHERE id::text = ANY(%s)", (good,)).fetchone()
        fsync = connection.execute("SHOW fsync").fetchone()
    assert held is not None
    assert fsync is not None
    lost, doubled = len(good) - held[0], rows_of(stack) - len(set(good)) - warm
    p50, p99 = (percentile(found["latencies"], share) for share in (0.5, 0.99))
    lines = [
        f"| open loop, {rate:.0f}/s for {seconds:.0f} s | {len(good)} of {len(found['answers'])} answered 202; "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {lost} lost, {doubled} duplicated; fsync {fsync[0]} | |"
    ]
    with bare_server(stack, name) as other:
        asyncio.run(closed_loop(other, secret, name, 2))
        before, accepted, ours, theirs = rows_of(stack), 0, 0.0, 0.0
        for _ in range(2):  # alternating, the better of two
            theirs = max(theirs, asyncio.run(closed_loop(other, secret, name, CLOSED_SECONDS))[1])
            count, rate = asyncio.run(closed_loop(url, secret, name, CLOSED_SECONDS))
            accepted, ours = accepted + count, max(ours, rate)
        stored = rows_of(stack) - before
    lines.append(
        f"| closed loop, {CONNECTIONS} connections | ours {ours:.0f}/s, bare {theirs:.0f}/s; "
        f"{accepted} answered 202, {stored} stored | {ours / theirs:.2f} x |"
    )
    return lines


def rows_of(stack: Running) -> int:
    """Requests that are stored."""
    with psycopg.connect(database_of(stack)) as connection:
        row = connection.execute("SELECT count(*) FROM deletion_requests").fetchone()
    assert row is not None
    return int(row[0])


def sealing(stack: Running, name: str, rate: float, seconds: float = 30) -> str:
    """Accepting while batches are sealed and jobs run, which take the same two cores."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    with psycopg.connect(database_of(stack), autocommit=True) as connection:
        before = connection.execute("SELECT count(*) FROM jobs").fetchone()
        connection.execute("UPDATE jobs SET stage = 'quarantined', reason = 'bench' WHERE not_before > now()")
        found = asyncio.run(open_loop(stack.endpoint["url"], secret, name, rate, seconds))
        after = connection.execute("SELECT count(*) FROM jobs").fetchone()
    assert before is not None
    assert after is not None
    good = sum(status == 202 for status, _ in found["answers"])
    p50, p99 = (percentile(found["latencies"], share) for share in (0.5, 0.99))
    return (
        f"| open loop, {rate:.0f}/s for {seconds:.0f} s while {after[0] - before[0]} batches are sealed and run | "
        f"{good} of {len(found['answers'])} answered 202; p50 {p50:.1f} ms, p99 {p99:.1f} ms | |"
    )


def training(stack: Running, folder: Path) -> str:
    """GETs while a job trains."""
    secret = Path(stack.endpoint["api_key_file"]).read_text()
    policy = {**support.POLICY, "learning_rate": 1e-6, "max_epochs": 1000, "max_wait_seconds": 0}
    register(stack, folder, "training", policy)
    job_id = stack.client.until_batched(stack.client.submit("training", [support.KNOWN[0]])["id"])["job_id"]
    while stack.client.job(job_id)["epoch"] < 1:
        time.sleep(0.2)
    before = stack.client.job(job_id)["epoch"]
    found = asyncio.run(watch(stack.endpoint["url"], secret, "training", 30))
    epochs = stack.client.job(job_id)["epoch"] - before
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    return (
        f"| GET, 20/s for 30 s, while a job trains | p50 {p50:.1f} ms, p99 {p99:.1f} ms; {epochs} epochs meanwhile | |"
    )


def register(stack: Running, folder: Path, name: str, policy: dict[str, Any]) -> None:
    """Register the test model."""
    client: Client = stack.client
    model, retain, heldout = (str(folder / part) for part in ("model", "retain.jsonl", "heldout.jsonl"))
    client.add_model(name, model, retain, heldout, policy)


def hold(stack: Running, name: str) -> None:
    """A job that waits for tomorrow: the model's requests stay pending, and nothing trains on the cores we measure."""
    with psycopg.connect(database_of(stack), autocommit=True) as connection:
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
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(*arguments.bare)
        return 0
    with tempfile.TemporaryDirectory(prefix="unlearnd-load-") as place:
        Path(place).chmod(0o755)
        folder = support.model_folder(Path(place) / "base")
        stack = Running(Path(place) / "data", UNLEARND_REQUESTS_PER_MINUTE="1000000")
        try:
            register(stack, folder, "load", support.POLICY)
            hold(stack, "load")
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
