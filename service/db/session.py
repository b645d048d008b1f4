"""The engine, and the one place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from service.failpoints import reach

DRIVER = "postgresql+psycopg"


def sqlalchemy_url(url: str) -> str:
    """A `postgresql://` URL with the driver that is installed."""
    return url.replace("postgresql://", f"{DRIVER}://", 1).replace("postgres://", f"{DRIVER}://", 1)


class Database:
    """A pool of connections and transactions on it."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        """Connect lazily to `url`; parameters never appear in errors or logs."""
        self.engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"options": "-c lock_timeout=10000 -c statement_timeout=60000 -c timezone=UTC"},
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self, name: str = "") -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an exception.

        One that changes the state of a request or job has a `name`: tests halt processes before and after its commit.
        """
        with self._sessions.begin() as session:
            yield session
            if name:
                reach(f"{name}.commit")
        if name:
            reach(f"{name}.committed")

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()
