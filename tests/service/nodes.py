"""Two PostgreSQL servers: one takes writes, the other follows it. The one can be lost, and the other promoted."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from service import migrate
from service.local import postgres
from service.local.process import Process, wait_until


class Nodes:
    """A first server with a migrated database, and a second one that follows it."""

    def __init__(self, place: Path) -> None:
        """Start both in `place`."""
        self._place, self._running = place, dict[str, Process]()
        self._start("first")
        owner, app = (self._url(["first"], user) for user in ("postgres", postgres.APP_ROLE))
        logins = {name: self._url(["first"], user) for name, user in postgres.LOGINS.items()}
        migrate.upgrade(owner, app, **logins)
        copied = [str(postgres.prepare(place / "first") / "pg_basebackup"), "-R", "-X", "stream", "-c", "fast"]
        copied += ["-h", str(place / "first-s"), "-U", "postgres", "-D", str(place / "second-copy")]
        user = postgres.OS_USER if os.geteuid() == 0 else None
        subprocess.run(copied, check=True, user=user, cwd=place)
        (place / "second-copy").rename(place / "second")
        self._start("second")
        self.wait_for_second()

    def url(self, user: str = postgres.APP_ROLE) -> str:
        """The URL of the database with both hosts."""
        return self._url(["first", "second"], user)

    def wait_for_second(self) -> None:
        """Wait until the second server has everything of the first."""
        with psycopg.connect(self._url(["first"], "postgres"), autocommit=True) as connection:
            question = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
            assert wait_until(lambda: connection.execute(question).fetchone()[0] == 1, 30)

    def stop_second(self) -> None:
        """Stop the second server: it misses what comes."""
        self._stop("second")

    def lose_first(self) -> None:
        """Kill the first server for good."""
        process = self._running.pop("first")
        process.end_session()
        process.wait()

    def promote_second(self) -> None:
        """Start the second server, if need be, and let it take writes."""
        if "second" not in self._running:
            self._start("second")
        with psycopg.connect(self._url(["second"], "postgres"), autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote()").fetchone()[0]

    def set_second(self, name: str, value: str) -> None:
        """Give the second server a setting."""
        with psycopg.connect(self._url(["second"], "postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")
            assert wait_until(lambda: connection.execute(f"SHOW {name}").fetchone()[0] == value, 60)

    def stop(self) -> None:
        """Stop both."""
        for name in list(self._running):
            self._stop(name)

    def _url(self, names: list[str], user: str) -> str:
        sockets = ",".join(str(self._place / f"{name}-s") for name in names)
        return f"postgresql://{user}@/postgres?host={sockets}"

    def _start(self, name: str) -> None:
        sockets = self._place / f"{name}-s"
        sockets.mkdir(exist_ok=True)
        self._running[name] = postgres.process(self._place / name, sockets, self._place / f"{name}.log")
        self._running[name].start()
        log = self._place / f"{name}.log"
        assert wait_until(lambda: postgres.is_ready(self._place / name, sockets), 30), log.read_text()

    def _stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.ask_to_stop()
        process.wait()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Two running servers in a folder that the servers' user may enter."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-n-") as place:
        Path(place).chmod(0o777)
        pair = Nodes(Path(place))
        try:
            yield pair
        finally:
            pair.stop()
