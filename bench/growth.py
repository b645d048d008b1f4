"""Does the time grow? What the service does again and again, with 1,000 to 1,000,000 pending requests.

    python -m bench.growth

On a PostgreSQL server of its own, with 1,000 versions and as many log entries and callbacks made as requests. The
values are medians of nine, in milliseconds. The last row is the memory of this process, which did all of it, in MiB.
"""

import statistics
import sys
import time
from collections.abc import Callable
from uuid import UUID

import psutil
from prometheus_client import generate_latest
from sqlalchemy import text
from sqlalchemy.orm import Session

from bench.data import machine
from bench.server import temporary_services
from service.api.health import metrics_registry
from service.bootstrap import Services
from service.db import api_keys, log_entries, models, requests
from service.db.request_list import Filters, listing
from service.db.tables import Model, Version
from service.domain.submission import Submission
from service.steps.operator.restore import reconcile
from service.steps.path.batch import batch_requests
from service.steps.path.request import accept_request
from service.steps.upkeep.deliver import deliver_callbacks
from service.steps.upkeep.purge import purge_due, purge_restored
from service.steps.upkeep.shred import shred_purged
from service.steps.upkeep.sweep import collect_garbage, run_parts, wake_lost_work
from tests.growth import grow

SIZES, REPEATS = (1_000, 100_000, 1_000_000), 9


def median(action: Callable[[], object], after: Callable[[], object] = lambda: None) -> float:
    """Milliseconds of an action; `after` undoes it, untimed."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
        after()
    return 1000 * statistics.median(seconds)


def measure(services: Services, model: Model, api_key_id: UUID) -> dict[str, float]:
    """Each action's milliseconds."""

    def unseal() -> None:
        with services.db.transaction() as session:
            session.execute(text("UPDATE jobs SET stage = 'done' WHERE stage <> 'done'"))

    def read(query: Callable[[Session], object]) -> None:
        with services.db.reading() as session:
            query(session)

    def append() -> None:
        with services.db.transaction() as session:
            log_entries.append(session, "bench")

    submission = Submission(model.name, ["a record"])
    with services.db.reading() as session:
        newest = listing(session, None, 1, Filters()).items[0]
    return {
        "sealing a batch of 32": median(lambda: batch_requests(services, model.id), unseal),
        "accepting a request": median(lambda: accept_request(services, submission, api_key_id, None)),
        "a page of 50, newest": median(lambda: read(lambda s: listing(s, None, 50, Filters()))),
        "a page of 50, by status": median(lambda: read(lambda s: listing(s, None, 50, Filters(status="pending")))),
        "one request": median(lambda: read(lambda s: requests.by_id(s, newest.id))),
        "appending to the log": median(append),
        "the latest version": median(lambda: read(lambda s: models.version(s, model, 1000))),
        "a sweep": median(lambda: wake_lost_work(services)),
        "the metrics": median(lambda: generate_latest(metrics_registry(services))),
        "collection: reconciling": median(lambda: reconcile(services)),
        "collection: purging": median(lambda: run_parts(services, purge_restored, purge_due, shred_purged)),
        "collection: garbage": median(lambda: collect_garbage(services)),
        "callbacks, none due": median(lambda: deliver_callbacks(services, go_on=lambda: True)),
        "signing the log": median(services.log.sign, append),
        "proving an entry": median(lambda: services.log.prove(500)),
        "memory": psutil.Process().memory_info().rss / 2**20,
    }


def main() -> int:
    """Print the table."""
    milliseconds: dict[int, dict[str, float]] = {}
    with temporary_services(max_wait_seconds=0) as (services, _):
        with services.db.transaction() as session:
            api_key_id = api_keys.create(session, "bench", ["submit"])[0].id
            policy = {"max_batch_records": 32, "max_wait_seconds": 0}
            model = Model(name="grown", policy=policy, retain={}, heldout={"overlap": {"exact": 0, "near": 0}})
            session.add(model)
            session.flush()
            session.add(Version(model_id=model.id, number=0, digest="0", files=[], metrics={}))
        grow(services, "grown", versions=1000)
        collect_garbage(services)  # the first one writes the ledger of these versions
        previous = 0
        for size in SIZES:
            grow(services, "grown", requests=size - previous, entries=size - previous)
            previous = size
            services.log.sign()  # the first time it copies all entries
            milliseconds[size] = measure(services, model, api_key_id)
    print(f"Machine: {machine()}.\n")
    print("| ms | " + " | ".join(f"{size:,}" for size in SIZES) + " | largest / smallest |\n" + "|---" * 5 + "|")
    for name in milliseconds[SIZES[0]]:
        row = [milliseconds[size][name] for size in SIZES]
        print(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in row) + f" | {row[-1] / row[0]:.1f} x |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
