"""Checks that the migrations create the declared tables, on a PostgreSQL server of its own.

python -m service.local.check_migrations
"""

import sys
import tempfile
from pathlib import Path

from service import migrate
from service.local import postgres
from service.local.process import wait_until


def main() -> int:
    """Migrate an empty database up, compare it with the tables, and migrate it down and up again."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-") as folder:
        data, sockets = Path(folder) / "postgres", Path(folder) / "s"
        sockets.mkdir()
        server = postgres.process(data, sockets, Path(folder) / "postgres.log")
        server.start()
        try:
            wait_until(lambda: postgres.is_ready(data, sockets), 60)
            url = postgres.url(sockets)
            migrate.upgrade(url)
            migrate.check(url)
            migrate.downgrade(url, "base")
            migrate.upgrade(url)
        finally:
            server.ask_to_stop()
            server.wait()
    sys.stdout.write("migrations: up, same as the tables, down, up\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
