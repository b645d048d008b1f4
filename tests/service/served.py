"""The application on a real socket: in a thread with short times, or in a process of its own."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import psutil
import uvicorn

from service.api.connections import limited_protocol
from service.local.process import wait_until
from service.main import create_app

SECONDS = 0.5


@contextmanager
def served(services, listener: socket.socket | None = None, **settings):
    """The application on a real socket, of its own or given, with short times and these settings."""
    settings = {"request_seconds": SECONDS, "max_connections": 20, "share": 1, **settings}
    services.settings = services.settings.model_copy(update=settings)
    listener = listener or socket.create_server(("127.0.0.1", 0))
    protocol = limited_protocol(services.settings)
    config = uvicorn.Config(
        create_app(services), http=protocol, log_level="warning", timeout_keep_alive=30, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert wait_until(lambda: server.started, 60)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class ServerProcess:
    """A process of the API as `unlearnd api` runs it."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        """Note how much memory it takes before anybody asks anything."""
        self.address, self.url, self.process = ("127.0.0.1", port), f"http://127.0.0.1:{port}", process
        self._memory_before = psutil.Process(process.pid).memory_info().rss

    @property
    def grown_mib(self) -> float:
        """Memory that it has taken since its start, in MiB."""
        return (psutil.Process(self.process.pid).memory_info().rss - self._memory_before) / 2**20

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from an address of this machine: all of 127.0.0.0/8 is."""
        return socket.create_connection(self.address, 10, (source, 0))

    def get(self, path: str, key: str = "", source: str = "127.0.0.1", **headers: str) -> httpx.Response:
        """The answer to a GET."""
        with self.client(key, source) as client:
            return client.get(path, headers=headers)

    def client(self, key: str = "", source: str = "127.0.0.1") -> httpx.Client:
        """A client with an API key, at an address of this machine."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.HTTPTransport(local_address=source)
        return httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=60)


def environment(services, **settings) -> dict[str, str]:
    """The environment of a process with the same database, broker and folders, and with these settings."""
    names = ("database_url", "broker_url", "storage_dir", "keys_dir")
    values = {name: getattr(services.settings, name) for name in names} | settings
    return {**os.environ, **{f"UNLEARND_{name.upper()}": str(value) for name, value in values.items()}}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server_process(services, host: str = "127.0.0.1", **settings):
    """A process of the API with these settings."""
    port = free_port()
    command = [sys.executable, "-m", "service.main", "--host", host, "--port", str(port)]
    process = subprocess.Popen(command, env=environment(services, **settings), stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        assert wait_until(answers, 60)
        yield ServerProcess(process, port)
    finally:
        process.terminate()
        process.wait(20)
