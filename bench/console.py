"""The console's first page with 100,000 requests, and 200 people who watch a job while requests arrive.

    python -m bench.console [--requests 100000] [--viewers 200] [--rate 100] [--seconds 30]

On the embedded stack, one API process, while a job trains on the same cores. A viewer holds the stream of a job's page,
through which the part that changes comes.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import httpx
import psycopg

from bench.data import machine
from bench.load import begin_job, database_url, delay_jobs, register
from bench.load_clients import open_loop, percentiles
from tests import growth, support
from tests.stack import Running

PAGES = 50
STATIC = re.compile(r'(?:src|href)="(/console/static/[^"]+)"')


def sign_in(stack: Running) -> dict[str, str]:
    """The cookies of a session of the stack's key."""
    form = {"api_key": Path(stack.endpoint["api_key_file"]).read_text()}
    answer = httpx.post(f"{stack.endpoint['url']}/console/sign-in", data=form, trust_env=False)
    return dict(answer.cookies)


def first_page(stack: Running, count: int) -> str:
    """How long the first page takes, and how much a browser loads for it."""
    with psycopg.connect(database_url(stack), autocommit=True) as connection:
        connection.execute(growth.REQUESTS.replace(":model", "'load'").replace(":count", str(count)))
        connection.execute("ANALYZE")
    with httpx.Client(base_url=stack.endpoint["url"], cookies=sign_in(stack), trust_env=False) as client:
        seconds = []
        for _ in range(PAGES):
            started = time.perf_counter()
            page = client.get("/console").raise_for_status()
            seconds.append(time.perf_counter() - started)
        files = sum(len(client.get(path).content) for path in set(STATIC.findall(page.text)))
    size = (len(page.content) + files) / 1000
    return f"| the first page with {count:,} requests, {size:.0f} kB in all | {percentiles(sorted(seconds))} |"


async def watch(client: aiohttp.ClientSession, job_id: str, sizes: list[int]) -> None:
    """Hold the stream of a job until cancelled; note the size of each part that it sends."""
    async with client.get(f"/console/jobs/{job_id}/events") as stream:
        assert stream.status == 200, stream.status
        size = 0
        async for line in stream.content:
            size += len(line)
            if not line.strip():
                sizes.append(size)
                size = 0


async def load(stack: Running, job_id: str, viewers: int, rate: float, seconds: float) -> str:
    """Requests at fixed times while people watch a job."""
    sizes: list[int] = []
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    cookies, url = sign_in(stack), stack.endpoint["url"]
    jar = aiohttp.CookieJar(unsafe=True)  # for an address in place of a name
    async with aiohttp.ClientSession(url, cookie_jar=jar, connector=connector, timeout=timeout) as client:
        jar.update_cookies(cookies, response_url=client._build_url("/console"))  # its own base
        watching = [asyncio.create_task(watch(client, job_id, sizes)) for _ in range(viewers)]
        secret = Path(stack.endpoint["api_key_file"]).read_text()
        result = await open_loop(url, secret, "load", rate, seconds)
        broken = [task for task in watching if task.done()]
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    assert not broken, broken[0]
    seen = f"; {len(sizes)} parts of {sum(sizes) / len(sizes) / 1000:.0f} kB were sent" if sizes else ""
    return (
        f"| POST, {rate:.0f}/s for {seconds:.0f} s, {viewers} viewers, while a job trains | "
        f"{len(result.accepted)} of {len(result.answers)} answered 202; {percentiles(result.latencies)}{seen} |"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unlearnd-console-") as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        folder = support.model_folder(root / "base")
        stack = Running(root / "data", UNLEARND_REQUESTS_PER_MINUTE="1000000", OMP_NUM_THREADS="1")
        try:
            register(stack, folder, "load", support.POLICY)
            delay_jobs(stack, "load")
            print(f"Machine: {machine()}.\n\n| | |\n|---|---|", flush=True)
            print(first_page(stack, arguments.requests), flush=True)
            job_id = begin_job(stack, folder)
            for viewers in (0, arguments.viewers):
                row = asyncio.run(load(stack, job_id, viewers, arguments.rate, arguments.seconds))
                print(row, flush=True)
        finally:
            stack.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
