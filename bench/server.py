"""A PostgreSQL and a Valkey server of its own for a bench."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service import migrate
from service.bootstrap import Services, build, create_keys
from service.config import Settings
from service.local import postgres, valkey
from service.local.process import wait_until


@contextmanager
def temporary_services(
    *, max_wait_seconds: float = 900, prepare: Callable[[str], None] = lambda _: None, with_broker: bool = True
) -> Iterator[tuple[Services, Path]]:
    """Services with a new database, a new broker and new keys, and the temporary folder that holds them.

    `prepare` gets the owner's URL of the database before its tables are made. Without a broker nothing may be sent.
    """
    with tempfile.TemporaryDirectory(prefix="unlearnd-b-") as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        sockets = root / "s"
        sockets.mkdir()
        server = postgres.process(root / "postgres", sockets, root / "postgres.log")
        processes = [server]
        if with_broker:
            processes.append(valkey.process(root / "valkey", sockets, root / "valkey.log"))
        for process in processes:
            process.start()
        try:
            assert wait_until(lambda: postgres.is_ready(root / "postgres", sockets), 60)
            assert not with_broker or wait_until(lambda: valkey.is_ready(sockets), 30)
            prepare(postgres.url(sockets))
            migrate.upgrade(postgres.url(sockets), postgres.url(sockets, user=postgres.APP_ROLE))
            create_keys(Settings(keys_dir=root / "keys"))
            settings = Settings(
                database_url=postgres.url(sockets, user=postgres.APP_ROLE),
                owner_database_url=postgres.url(sockets),
                broker_url=valkey.url(sockets),
                storage_dir=root / "storage",
                keys_dir=root / "keys",
                corpus_roots=str(root),
                max_wait_seconds=max_wait_seconds,
            )
            services = build(settings)
            try:
                yield services, root
            finally:
                services.close()
        finally:
            for process in reversed(processes):
                process.ask_to_stop()
                process.wait()
