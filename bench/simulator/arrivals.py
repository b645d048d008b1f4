"""The requests of a run: when they arrive, when they are due, and how they ended."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from bench.simulator.clock import START
from service.bootstrap import Services
from service.db import api_keys
from service.db.session import Database
from service.db.tables import Model, Version

INSERT = text("""
INSERT INTO deletion_requests (id, model_id, api_key_id, status, regulation, received_at, due_at, accepted_at,
    records_count, ref, commitment, wrapped_key, body_hash)
SELECT gen_random_uuid(), model, key, 'pending', 'gdpr', arrived, due, arrived, 1, lpad(number::text, 32, '0'),
    '\\x00', '\\x00', '\\x00'
FROM unnest(cast(:numbers AS bigint[]), cast(:models AS uuid[]), cast(:keys AS uuid[]), cast(:arrived AS timestamptz[]),
    cast(:due AS timestamptz[])) AS given (number, model, key, arrived, due)
""")
ENDS = text("SELECT ref, status, version, finished_at FROM deletion_requests ORDER BY ref")


class Arrival(NamedTuple):
    """A request with one record: its model's number, and the seconds since the start at which it arrives and is due."""

    model: int
    at: float
    due: float


class End(NamedTuple):
    """How a request ended, and when, in seconds since the start; None if it has not."""

    status: str
    version: int | None
    at: float | None


@dataclass(frozen=True)
class Demand:
    """How requests arrive.

    Attributes:
        requests: How many arrive in all.
        models: How many models they are about.
        seconds: In how many seconds they arrive, evenly.
        due: The least and the most seconds until a request is due, all between equally likely.
        seed: Of the random numbers.
        backlog: The share of them that waits at the start.
    """

    requests: int
    models: int
    seconds: float
    due: tuple[float, float]
    seed: int = 0
    backlog: float = 0.0

    def arrivals(self) -> list[Arrival]:
        """All requests, in the order in which they arrive."""
        drawn = random.Random(self.seed)
        chosen = drawn.choices(range(self.models), k=self.requests)
        first = int(self.backlog * self.requests)
        step = self.seconds / max(1, self.requests - first)
        times = [max(0, number - first) * step for number in range(self.requests)]
        return [
            Arrival(model, round(at, 3), round(at + drawn.uniform(*self.due), 3))
            for model, at in zip(chosen, times, strict=True)
        ]


class Intake:
    """Inserts requests as they arrive."""

    def __init__(self, services: Services, models: Sequence[UUID], keys: Sequence[UUID]) -> None:
        """Insert requests about these models; these API keys take turns."""
        self._services, self._models, self._keys = services, models, keys

    def insert(self, first: int, arrivals: Sequence[Arrival]) -> None:
        """Insert requests whose numbers begin with `first`."""
        numbers = range(first, first + len(arrivals))
        values = {
            "numbers": list(numbers),
            "models": [self._models[arrival.model] for arrival in arrivals],
            "keys": [self._keys[number % len(self._keys)] for number in numbers],
            "arrived": [moment(arrival.at) for arrival in arrivals],
            "due": [moment(arrival.due) for arrival in arrivals],
        }
        with self._services.db.transaction() as session:
            session.execute(INSERT, values)


def moment(seconds: float) -> datetime:
    """A point in virtual time."""
    return START + timedelta(seconds=seconds)


def make_models(services: Services, count: int, policy: dict[str, object], seed: int) -> list[UUID]:
    """Register models that exist in the database alone."""
    drawn = random.Random(seed)
    ids = [UUID(int=drawn.getrandbits(128), version=4) for _ in range(count)]
    texts = {"sha256": "0" * 64, "records": 64, "overlap": {"exact": 0, "near": 0}}
    with services.db.transaction() as session:
        for number, model_id in enumerate(ids):
            session.add(Model(id=model_id, name=f"m{number}", policy=policy, retain=texts, heldout=texts))
        session.flush()
        for model_id in ids:
            session.add(Version(model_id=model_id, number=0, digest=f"{model_id}/0", files=[], metrics={}))
    return ids


def make_keys(services: Services, count: int) -> list[UUID]:
    """Make API keys that submit requests."""
    with services.db.transaction() as session:
        return [api_keys.create(session, f"key{number}", ["submit"])[0].id for number in range(count)]


def analyse(services: Services) -> None:
    """Let the planner know the tables, as a server that has run for long does."""
    owner = Database(services.settings.owner_database_url, pool_size=1)
    with owner.reading() as session:
        session.execute(text("ANALYZE"))
    owner.close()


def read_ends(services: Services) -> list[End]:
    """How every request that was inserted ended, by its number."""
    with services.db.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        return [
            End(status, version, (finished - START).total_seconds() if finished else None)
            for _, status, version, finished in session.execute(ENDS)
        ]
