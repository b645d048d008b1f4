"""The clients of `bench.load`: requests at fixed times, requests as fast as possible, and GETs.

They use aiohttp, because it takes little of the two cores that the bench measures on.
"""

import asyncio
import time
from dataclasses import dataclass
from uuid import uuid4

import aiohttp

from bench.bare_server import PATH
from tests import support

CONNECTIONS = 32
SECONDS_PER_TASK = 1e-4  # more than it takes to make one: no request is due before all are made


@dataclass(frozen=True)
class OpenLoopResult:
    """The answers of an open loop as (status, id), and their sorted latencies in seconds."""

    answers: list[tuple[int, str]]
    latencies: list[float]

    @property
    def accepted(self) -> list[str]:
        """The ids of the accepted requests."""
        return [request_id for status, request_id in self.answers if status == 202]


async def submit_one(client: aiohttp.ClientSession, name: str, number: int) -> tuple[int, str]:
    """(status, id) of one request."""
    body = {"model": name, "records": [{"text": f"{number} {support.KNOWN[number % len(support.KNOWN)]}"}]}
    async with client.post(PATH, json=body, headers={"Idempotency-Key": f"load-{uuid4().hex}"}) as response:
        answer = await response.json()
        return response.status, answer.get("id", "")


def client_session(url: str, secret: str, connections: int) -> aiohttp.ClientSession:
    """A client that keeps its connections open."""
    headers = {"Authorization": f"Bearer {secret}"}
    return aiohttp.ClientSession(url, headers=headers, connector=aiohttp.TCPConnector(limit=connections))


async def open_loop(url: str, secret: str, name: str, rate: float, seconds: float) -> OpenLoopResult:
    """Send requests at fixed times; a request's latency starts at the time at which it was due."""
    latencies: list[float] = []
    answers: list[tuple[int, str]] = []
    count = int(rate * seconds)
    async with client_session(url, secret, 200) as client:
        started = time.perf_counter() + 0.1 + count * SECONDS_PER_TASK

        async def submit_when_due(number: int) -> None:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            answers.append(await submit_one(client, name, number))
            latencies.append(time.perf_counter() - due)

        await asyncio.gather(*(submit_when_due(n) for n in range(count)))
    return OpenLoopResult(answers, sorted(latencies))


async def closed_loop(url: str, secret: str, name: str, seconds: float) -> tuple[int, float]:
    """Keep every connection busy; returns the accepted requests, and their number a second."""
    accepted = 0
    async with client_session(url, secret, CONNECTIONS) as client:
        until = time.perf_counter() + seconds

        async def submit_in_turn(lane: int) -> None:
            nonlocal accepted
            number = lane
            while time.perf_counter() < until:
                status, _ = await submit_one(client, name, number)
                assert status == 202
                accepted += 1
                number += CONNECTIONS

        started = time.perf_counter()
        await asyncio.gather(*(submit_in_turn(lane) for lane in range(CONNECTIONS)))
        return accepted, accepted / (time.perf_counter() - started)


async def read_loop(url: str, secret: str, name: str, seconds: float, rate: float = 20) -> list[float]:
    """Sorted latencies of GETs at fixed times, in seconds."""
    latencies: list[float] = []
    async with client_session(url, secret, 10) as client:
        started = time.perf_counter()
        paths = [PATH + "?limit=20", f"/v1/models/{name}/versions/latest", "/v1/jobs?limit=20"]

        async def read_when_due(number: int) -> None:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            async with client.get(paths[number % len(paths)]) as response:
                assert response.status == 200, await response.text()
                await response.read()
            latencies.append(time.perf_counter() - due)

        await asyncio.gather(*(read_when_due(n) for n in range(int(rate * seconds))))
    return sorted(latencies)


def percentiles(latencies: list[float]) -> str:
    """The 50th and 99th percentile of sorted seconds, in words and milliseconds."""
    p50, p99 = (1000 * latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
