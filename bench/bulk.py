"""Requests in bulk against pgbench's rate for the same inserts, and one API process against two.

    python -m bench.bulk [--requests 10000] [--rate 500]

The embedded stack with `fsync` on. pgbench stores the same rows in the same tables and appends the same entry to the
log: a transaction a request with as many connections as the intake has callers, and, as the intake does it, in groups
of 32. `--rate` is of an open loop of single requests.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import psycopg

from bench.data import machine
from bench.load import count_requests, database_url, delay_jobs, register
from bench.load_clients import closed_loop, open_loop, percentiles
from service import migrate
from service.local import postgres
from tests import support
from tests.stack import Running

NAME, TIMES, GROUP, SECONDS = "bulk", 3, 32, 10.0
ENTRY = '{"at":"2026-11-28T00:00:00+00:00","commitment":"%s","due":"2026-12-28","kind":"request.accepted","ref":"%s"}'
INSERTS = f"""
WITH request AS (
    INSERT INTO deletion_requests (id, model_id, api_key_id, status, regulation, received_at, due_at, records_count,
        ref, commitment, wrapped_key, idempotency_hash, body_hash)
    SELECT gen_random_uuid(), (SELECT id FROM models), (SELECT id FROM api_keys), 'pending', 'gdpr', now(),
        now() + interval '1 month', 1, md5(random()::text), sha256(random()::text::bytea),
        decode(repeat('00', 60), 'hex'), sha256(random()::text::bytea), sha256('x')
    FROM generate_series(1, GROUP_SIZE) RETURNING id),
kept AS (
    INSERT INTO records (request_id, position, sealed)
    SELECT id, 0, decode(repeat('00', 110), 'hex') FROM request RETURNING request_id)
SELECT audit_append(convert_to('{ENTRY % ("0" * 64, "0" * 32)}', 'UTF8')) FROM kept;
"""


def bulk_body(count: int) -> bytes:
    """A call with so many requests of one short record each."""
    lines = (
        {"model": NAME, "records": [{"text": f"person {n} lives at {n} Sample Street."}], "idempotency_key": f"row {n}"}
        for n in range(count)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def ours(stack: Running, count: int) -> list[float]:
    """Requests a second of bulk calls; every line is accepted and stored."""
    headers = {"Content-Type": "application/x-ndjson", "Authorization": f"Bearer {secret(stack)}"}
    rates = []
    for number in range(TIMES):
        body, before = bulk_body(count).replace(b"row ", f"{number} row ".encode()), count_requests(stack)
        started = time.perf_counter()
        answer = httpx.post(
            stack.endpoint["url"] + "/v1/deletion-requests:bulk", content=body, headers=headers, timeout=600
        )
        rates.append(count / (time.perf_counter() - started))
        statuses = [json.loads(line)["status"] for line in answer.text.splitlines()]
        assert statuses == [202] * count, set(statuses)
        assert count_requests(stack) - before == count
    return rates


def theirs(stack: Running, group: int, clients: int) -> list[float]:
    """Requests a second that pgbench stores in a second database of the same server."""
    url = database_url(stack)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bare")
        connection.execute("CREATE DATABASE bare")
    migrate.upgrade(url.replace("/postgres?", "/bare?"))
    with psycopg.connect(url.replace("/postgres?", "/bare?"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO models (id, name, policy, retain, heldout) VALUES (gen_random_uuid(), 'x', '{}', '{}', '{}')"
        )
        connection.execute(
            "INSERT INTO api_keys (id, name, key_hash, scopes) VALUES (gen_random_uuid(), 'x', 'x', '{}')"
        )
    script = stack.data / "pgbench.sql"
    script.write_text(INSERTS.replace("GROUP_SIZE", str(group)))
    program = postgres.prepare(stack.data / "postgres") / "pgbench"
    command = [
        str(program),
        "-n",
        "-M",
        "prepared",
        "-c",
        str(clients),
        "-j",
        "2",
        "-T",
        str(int(SECONDS)),
        "-f",
        str(script),
    ]
    command += ["-h", str(stack.data / "run" / "sockets"), "-U", "postgres", "bare"]
    rates = []
    for _ in range(TIMES):
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (line,) = [line for line in said.splitlines() if line.startswith("tps")]
        rates.append(group * float(line.split()[2]))
    return rates


def secret(stack: Running) -> str:
    """The API key."""
    return Path(stack.endpoint["api_key_file"]).read_text()


def single(stack: Running, rate: float) -> tuple[float, float, str]:
    """(requests a second of a closed loop, milliseconds of CPU of the API a request, percentiles of an open loop)."""
    url, before = stack.endpoint["url"], api_seconds(stack)
    asyncio.run(closed_loop(url, secret(stack), NAME, 2))
    before = api_seconds(stack)
    count, closed = asyncio.run(closed_loop(url, secret(stack), NAME, SECONDS))
    used = 1000 * (api_seconds(stack) - before) / count
    answers = asyncio.run(open_loop(url, secret(stack), NAME, rate, SECONDS))
    assert len(answers.accepted) == len(answers.answers)
    return closed, used, percentiles(answers.latencies)


def api_seconds(stack: Running) -> float:
    """CPU seconds of all API processes."""
    used = [process.cpu_times() for process in stack.processes("service.main")]
    return float(sum(times.user + times.system for times in used))


def print_bulk(stack: Running, count: int) -> None:
    """Print the rates of one bulk call and of pgbench."""
    in_bulk = statistics.median(ours(stack, count))
    print("| requests a second, median of three | | ours / pgbench |\n|---|---|---|")
    print(f"| {count} in one bulk call | {in_bulk:.0f} | |", flush=True)
    for group, clients in ((1, 1), (1, 8), (GROUP, 1)):
        rate = statistics.median(theirs(stack, group, clients))
        what = f"pgbench, {group} a transaction, {clients} connections"
        print(f"| {what} | {rate:.0f} | {in_bulk / rate:.2f} x |", flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=500)
    arguments = parser.parse_args()
    print(f"Machine: {machine()}, {psutil.cpu_count()} CPUs.\n")
    with tempfile.TemporaryDirectory(prefix="unlearnd-bulk-") as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        folder = support.model_folder(root / "base")
        for processes in (1, 2):
            options = ("--api-processes", str(processes))
            stack = Running(root / f"data-{processes}", *options, UNLEARND_REQUESTS_PER_MINUTE="1000000")
            try:
                register(stack, folder, NAME, support.POLICY)
                delay_jobs(stack, NAME)
                if processes == 1:
                    print_bulk(stack, arguments.requests)
                    print("\n| API processes | closed loop | CPU of the API a request | open loop |\n|---|---|---|---|")
                closed, used, spread = single(stack, arguments.rate)
                print(
                    f"| {processes} | {closed:.0f}/s | {used:.2f} ms | {arguments.rate:.0f}/s: {spread} |", flush=True
                )
            finally:
                stack.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
