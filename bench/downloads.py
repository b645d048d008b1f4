"""Downloads of a large file: from the API, from nginx in front of it, and from nginx alone, all in one run.

    python -m bench.downloads MODEL [--nginx PROGRAM] [--rounds 3]

MODEL is any model folder; its largest file is fetched. The API runs in two processes: one sends files itself, the other
leaves that to nginx (UNLEARND_ACCEL_PREFIX). nginx has the locations that `docs/guides/deployment.md` shows. Bytes are
read and dropped, over one connection; then `download_file` fetches the file in parts, four at once, and hashes it. The
last row is of lines that are slow for each connection, as long ones are. Processor time is that of the API's process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench.data import machine
from bench.server import temporary_services
from service.bootstrap import Services
from service.client.answers import VersionFile
from service.client.download import download_file
from service.client.http import Client
from service.db import api_keys
from service.local.process import wait_until
from tests import support
from tests.service.served import environment, free_port

PREFIX = "/released/"
NGINX = """
user root;
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/nginx.log;
events {{}}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    server {{
        listen 127.0.0.1:{proxied};
        location / {{ proxy_pass {api}; proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
    server {{
        listen 127.0.0.1:{accel};
        location / {{
            proxy_pass {accel_api};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Sendfile-Type X-Accel-Redirect;
        }}
        location {prefix} {{
            internal;
            alias {versions}/;
            etag off;
            add_header ETag $upstream_http_etag;
            add_header Repr-Digest $upstream_http_repr_digest;
        }}
    }}
    server {{
        listen 127.0.0.1:{static};
        location / {{ root {versions}; }}
    }}
    server {{
        listen 127.0.0.1:{slow};
        location / {{ root {versions}; limit_rate 40m; }}
    }}
}}
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--nginx", default="nginx")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with temporary_services() as (services, root):
        key = register(services, root, arguments.model)
        rows = compare(services, root, key, arguments.nginx, arguments.rounds)
    lines = [machine(), *rows]
    sys.stdout.write("\n".join(lines) + "\n")


def register(services: Services, root: Path, folder: Path) -> str:
    """Register the model as `large`; return an API key."""
    with services.db.transaction() as session:
        key = api_keys.create(session, "bench", ["admin"])[1]
    retain = support.write_texts(root / "retain.jsonl", support.RETAIN)
    heldout = support.write_texts(root / "heldout.jsonl", support.HELDOUT)
    with running_api(services, root, str(folder)) as (url, _), Client(url, key, timeout=600) as client:
        client.add_model("large", str(folder), str(retain), str(heldout), {})
    return key


@contextmanager
def running_api(services: Services, root: Path, roots: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(URL, process id) of an API process; with a prefix nginx sends its files."""
    port, variables = free_port(), environment(services, model_roots=f"{roots}:{root}", accel_prefix=prefix)
    command = [sys.executable, "-m", "service.cli", "api", "--port", str(port)]
    with (root / "api.log").open("ab") as log, subprocess.Popen(command, env=variables, stderr=log) as process:
        try:
            assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/livez"), 60)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Whether a server is there, whatever it says."""
    try:
        return bool(httpx.head(url).status_code)
    except httpx.TransportError:
        return False


def compare(services: Services, root: Path, key: str, nginx: str, rounds: int) -> list[str]:
    """The rows of the table."""
    with ExitStack() as running:
        own, own_pid = running.enter_context(running_api(services, root, str(root)))
        accel, accel_pid = running.enter_context(running_api(services, root, str(root), PREFIX))
        ports = {name: free_port() for name in ("proxied", "accel", "static", "slow")}
        versions = services.settings.storage_dir / "versions"
        (root / "nginx.conf").write_text(
            NGINX.format(root=root, api=own, accel_api=accel, prefix=PREFIX, versions=versions, **ports)
        )
        command = [nginx, "-p", str(root), "-c", str(root / "nginx.conf"), "-g", "daemon off;"]
        server = running.enter_context(subprocess.Popen(command))
        running.callback(server.terminate)
        with Client(own, key) as client:
            release = client.version("large", "0")
        file = max(release["files"], key=lambda entry: entry["size"])
        path = f"/v1/models/large/versions/0/files/{file['path']}"
        sides = {
            "the API": (own + path, own_pid),
            "nginx, which asks the API": (f"http://127.0.0.1:{ports['proxied']}{path}", own_pid),
            "nginx, told by the API": (f"http://127.0.0.1:{ports['accel']}{path}", accel_pid),
            "nginx alone": (f"http://127.0.0.1:{ports['static']}/{release['digest']}/{file['path']}", 0),
            "nginx alone, 42 MB/s a connection": (
                f"http://127.0.0.1:{ports['slow']}/{release['digest']}/{file['path']}",
                0,
            ),
        }
        assert wait_until(lambda: all(answers(url) for url, _ in sides.values()), 30)
        head = f"{file['size'] / 1e6:,.0f} MB, {rounds} rounds, medians"
        rows = [head, "", "| from | one connection, MB/s | API, s of a processor | parts and hash, MB/s | ratio |"]
        rows.append("|---|---|---|---|---|")
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=600) as http:
            results = {
                name: [measure(http, url, pid, root, file) for _ in range(rounds)] for name, (url, pid) in sides.items()
            }
    medians = {
        name: [statistics.median(column) for column in zip(*result, strict=True)] for name, result in results.items()
    }
    alone = medians["nginx alone"][0]
    for name, (plain, processor, parts) in medians.items():
        rows.append(f"| {name} | {plain:,.0f} | {processor:.2f} | {parts:,.0f} | {plain / alone:.2f} |")
    return rows


def measure(http: httpx.Client, url: str, pid: int, root: Path, file: VersionFile) -> tuple[float, float, float]:
    """(MB/s of one connection, processor time of the API in it, MB/s in parts with the hash)."""
    before, start = processor_seconds(pid), time.perf_counter()
    with http.stream("GET", url) as answer:
        assert answer.status_code == 200
        assert sum(len(chunk) for chunk in answer.iter_raw(1 << 20)) == file["size"]
    plain, spent = time.perf_counter() - start, processor_seconds(pid) - before
    with tempfile.TemporaryDirectory(dir=root) as folder:
        start = time.perf_counter()
        assert download_file(http, url, Path(folder) / "file", file, lambda *_: None)
        parts = time.perf_counter() - start
    return file["size"] / plain / 1e6, spent, file["size"] / parts / 1e6


def processor_seconds(pid: int) -> float:
    """The processor time of a process so far; 0 of none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
