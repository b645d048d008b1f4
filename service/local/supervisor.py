"""`unlearnd up`: PostgreSQL, Valkey, migrations, API, control worker and compute worker in one data folder.

    D/endpoint.json    {"url", "api_key_file"}, written once everything answers
    D/keys/            kek, the signing keys, admin.key; mode 0700; D/keys/compute/ holds the compute worker's keys
    D/postgres, D/valkey, D/storage, D/logs, D/run, D/tmp

Models and corpora may be registered in D, but not in the folders above.

The supervisor listens on the address of the API before it starts anything, and hands that socket to the API. So
nobody else can answer there, and a restarted API goes on with the same socket. A process that ends by itself is started
again. SIGINT and SIGTERM stop everything, workers first.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from service import address, migrate
from service.bootstrap import create_keys
from service.config import Settings
from service.db import api_keys
from service.db.session import Database
from service.domain.errors import CannotStart
from service.explain import describe_os_error
from service.files import write_private
from service.local import postgres, valkey
from service.local.keys import compute_keys
from service.local.logs import last_line, rotate
from service.local.process import KILL_AFTER, Process, stop_leftover, wait_until
from service.local.restarts import Restarter
from service.observability.logging import configure as configure_logs
from service.observability.logging import get_logger

logger = get_logger(__name__)
MAX_SOCKET_PATH = 90  # the system's limit is 108, and PostgreSQL appends a file name
READY_SECONDS = 90
PRIVATE = ("keys", "logs", "postgres", "run", "storage", "tmp", "valkey")  # the folders that the stack makes
WATCH_SECONDS = 1.0
ROTATE_AGAIN_SECONDS = 60.0
PARTS = ("api", "control", "compute", "valkey", "postgres")  # in the order in which they stop


class Stack:
    """The embedded stack on one data folder."""

    def __init__(self, data: Path, host: str = "127.0.0.1", port: int = 0, api_processes: int = 1) -> None:
        """Use the folder `data`, created if missing. Port 0 picks a free port.

        Raises:
            OSError: The folder cannot be written to.
        """
        self.data, self.host, self.port, self.api_processes = data.resolve(), host, port, api_processes
        self.settings = Settings(keys_dir=self.data / "keys")
        self.stopping = threading.Event()
        self._processes: list[Process] = []
        self._sockets: Path | None = None
        self._rotate_from = 0.0
        self._listener: socket.socket | None = None
        self._holds_lock = False
        for name in ("logs", "tmp", "storage", "run"):
            (self.data / name).mkdir(parents=True, exist_ok=True)
        (self.data / "keys").mkdir(mode=0o700, exist_ok=True)

    @property
    def url(self) -> str:
        """The URL of the API. It exists once the stack has begun to start."""
        assert self._listener is not None
        return address.url(self._listener)

    @property
    def api_key_file(self) -> Path:
        """The file that holds the admin API key."""
        return self.data / "keys" / "admin.key"

    def start(self) -> None:
        """Start everything and write `endpoint.json`.

        Raises:
            CannotStart: The address is taken, a part does not start, or another supervisor uses the folder.
            OSError: The disk is full, for example.
        """
        self._lock()
        (self.data / "endpoint.json").unlink(missing_ok=True)
        for name in PARTS:
            stop_leftover(self._log(name), signal.SIGINT if name == "postgres" else signal.SIGTERM)
        self._listener = address.listen(self.host, self.port)
        create_keys(self.settings)
        write_private(self.api_key_file, f"unl_{secrets.token_urlsafe(32)}".encode())
        sockets = self._socket_folder()
        data = self.data / "postgres"
        self._start_process("postgres", sockets, lambda: postgres.is_ready(data, sockets))
        self._start_process("valkey", sockets, lambda: valkey.is_ready(sockets))
        logins = {name: postgres.url(sockets, user=login) for name, login in postgres.LOGINS.items()}
        migrate.upgrade(postgres.url(sockets), self.environment["UNLEARND_DATABASE_URL"], **logins)
        self._store_admin_key()
        for name in ("control", "compute"):
            self._start_process(name, sockets, lambda: True)
        self._start_process("api", sockets, self._api_is_ready)
        endpoint = {"url": self.url, "api_key_file": str(self.api_key_file)}
        partial = self.data / "run" / "endpoint.json"
        partial.write_text(json.dumps(endpoint))
        partial.replace(self.data / "endpoint.json")

    def watch(self) -> None:
        """Restart every process that ends by itself and rotate the logs, until `stopping` is set.

        Raises:
            CannotStart: A process ends again and again.
        """
        restarters = [Restarter(process) for process in self._processes]
        while not self.stopping.wait(WATCH_SECONDS):
            for restarter in restarters:
                restarter.look()
            self._rotate_logs()

    def _rotate_logs(self) -> None:
        """Rotate the logs that are too large. If the disk is full, try again after some time."""
        if time.monotonic() < self._rotate_from:
            return
        try:
            for process in self._processes:
                rotate(process.log, max_bytes=self.settings.log_max_bytes, kept=self.settings.log_files)
        except OSError as error:
            logger.warning(f"a log is not rotated: {describe_os_error(error)}")
            self._rotate_from = time.monotonic() + ROTATE_AGAIN_SECONDS

    def stop(self) -> None:
        """Stop everything: the API and the workers first, then the servers that they need."""
        self.stopping.set()
        if not self._holds_lock:
            return  # another supervisor uses the folder, and the processes are not ours
        if self._listener is not None:
            self._listener.close()  # the API still has it, and ends
        workers = [process for process in self._processes if process.name not in ("postgres", "valkey")]
        servers = [process for process in self._processes if process.name in ("postgres", "valkey")]
        for group in (workers, servers):
            for process in group:
                process.ask_to_stop()
            deadline = time.monotonic() + KILL_AFTER
            for process in group:
                process.wait(deadline)
        (self.data / "endpoint.json").unlink(missing_ok=True)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._lock_file.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every part. A setting in this process's environment takes precedence."""
        sockets = self._socket_folder()
        defaults = {
            "UNLEARND_DATABASE_URL": postgres.url(sockets, user=postgres.APP_ROLE),
            "UNLEARND_BROKER_URL": valkey.url(sockets),
            "UNLEARND_STORAGE_DIR": str(self.data / "storage"),
            "UNLEARND_KEYS_DIR": str(self.data / "keys"),
            "UNLEARND_EPOCHS_DIR": str(self.data / "keys" / "epochs"),
            "UNLEARND_MAX_WAIT_SECONDS": "2",
            "UNLEARND_SWEEP_SECONDS": "1",
            "UNLEARND_LEASE_SECONDS": "10",
            "UNLEARND_COLLECT_SECONDS": "30",
            "UNLEARND_RETRY_SECONDS": "2",
        }
        settings = {name: os.environ.get(name, default) for name, default in defaults.items()}
        return {**settings, **self._folders, "TMPDIR": str(self.data / "tmp")}

    @property
    def _folders(self) -> dict[str, str]:
        """Where models and corpora may be registered, and where not: the operator's folders and the stack's own."""
        private = [self.data / name for name in PRIVATE]
        own = {"MODEL_ROOTS": [self.data], "CORPUS_ROOTS": [self.data], "PRIVATE_DIRS": private}
        named = {name: os.environ.get(f"UNLEARND_{name}", "").split(":") for name in own}
        return {f"UNLEARND_{name}": ":".join(filter(None, [*named[name], *map(str, own[name])])) for name in own}

    def process(self, name: str) -> Process:
        """The running process of a part: postgres, valkey, api, control or compute."""
        return next(process for process in self._processes if process.name == name)

    def _lock(self) -> None:
        """Lock the folder against another supervisor, until this one has stopped."""
        self._lock_file = (self.data / "run" / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotStart(f"another unlearnd runs on {self.data}") from error
        self._holds_lock = True

    def _socket_folder(self) -> Path:
        """The folder for sockets: `D/run/sockets`, or a temporary folder if that path is too long for a socket.

        `D/run/sockets-are-at` holds the path of the temporary folder, for other commands that use the stack.
        """
        if self._sockets is None:
            preferred = self.data / "run" / "sockets"
            fits = len(str(preferred)) <= MAX_SOCKET_PATH
            pointer = self.data / "run" / "sockets-are-at"
            if fits:
                preferred.mkdir(mode=0o700, exist_ok=True)
            elif self._holds_lock:
                pointer.write_text(tempfile.mkdtemp(prefix="unlearnd-"))
            self._sockets = preferred if fits else Path(pointer.read_text())
        return self._sockets

    def _make_process(self, name: str, sockets: Path) -> Process:
        """The process of a part, not yet started."""
        log_file = self._log(name)
        if name == "postgres":
            return postgres.process(self.data / "postgres", sockets, log_file)
        if name == "valkey":
            return valkey.process(self.data / "valkey", sockets, log_file)
        celery = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--pool", "threads"]
        celery += ["--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        beat = ["-B", "--schedule", str(self.data / "run" / "beat")]
        listener = (self._listener.fileno(),) if self._listener is not None and name == "api" else ()
        api = [sys.executable, "-m", "service.main", "--processes", str(self.api_processes)]
        commands = {
            "api": [*api, "--fd", *map(str, listener)],
            "control": [*celery, "-Q", "control", "-n", "control@%h", "--concurrency", "4", *beat],
            "compute": [*celery, "-Q", "gpu", "-n", "compute@%h", "--concurrency", "1"],
        }
        own = {"UNLEARND_KEYS_DIR": str(compute_keys(self.data / "keys"))} if name == "compute" else {}
        if self.settings.storage_url:  # each part has a folder of its own, as it has on a machine of its own
            own["UNLEARND_STORAGE_DIR"] = f"{self.environment['UNLEARND_STORAGE_DIR']}/{name}"
        if "UNLEARND_DATABASE_URL" not in os.environ:
            own["UNLEARND_DATABASE_URL"] = postgres.url(sockets, user=postgres.LOGINS[name])
        return Process(name, commands[name], log_file, environment={**self.environment, **own}, pass_fds=listener)

    def _log(self, name: str) -> Path:
        """The log of a part."""
        return self.data / "logs" / f"{name}.log"

    def _start_process(self, name: str, sockets: Path, is_ready: Callable[[], bool]) -> None:
        """Start a part and wait until it is ready."""
        process = self._make_process(name, sockets)
        process.start()
        self._processes.append(process)
        ready = wait_until(lambda: is_ready() or process.exited() is not None, READY_SECONDS, self.stopping)
        if self.stopping.is_set():
            raise CannotStart("stopped while starting")
        if not ready or process.exited() is not None:
            raise CannotStart(f"{name} does not start: {last_line(process.log)}; see {process.log}")

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _store_admin_key(self) -> None:
        """Enter the admin API key of the key file into the database; replace it first if it was revoked."""
        key = self.api_key_file.read_text().strip()
        database = Database(self.environment["UNLEARND_DATABASE_URL"], pool_size=1)
        with database.transaction() as session:
            if api_keys.is_revoked(session, key):
                self.api_key_file.unlink()
                key = f"unl_{secrets.token_urlsafe(32)}"
                write_private(self.api_key_file, key.encode())
            if api_keys.find_caller(session, api_keys.hash_key(key)) is None:
                api_keys.create(session, "embedded admin", list(api_keys.SCOPES), key=key)
        database.close()


def run(data: Path, host: str, port: int, api_processes: int) -> None:
    """Run the stack until SIGINT or SIGTERM.

    Raises:
        CannotStart: The stack does not start, or a part of it ends again and again.
        OSError: The disk is full, for example.
    """
    Settings().check_reachable_at(host)
    stack = Stack(data, host, port, api_processes)
    configure_logs("WARNING")  # at INFO the migrations tell of each step
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stack.stopping.set())
    try:
        stack.start()
        sys.stdout.write(f"unlearnd is ready at {stack.url}\n")
        sys.stdout.flush()
        stack.watch()
    except CannotStart:
        if not stack.stopping.is_set():
            raise
    finally:
        stack.stop()
