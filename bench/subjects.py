"""The subject index: how fast a corpus is indexed, in how much memory, and what a look-up costs against a scan.

    python -m bench.subjects

A corpus of fictional people in JSON lines, on a PostgreSQL server of its own. Each size is indexed in a process of its
own, whose peak memory is in the table. "read alone" is the same file by the same reader; "scan" reads the file to find
the same address.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from bench.data import machine
from bench.server import temporary_services
from service.bootstrap import Services, build
from service.config import Settings
from service.db import corpora
from service.db.corpus_tables import Corpus
from service.db.tables import Model
from service.domain.subject import Subject
from service.steps.subjects.index import add_corpus, index_corpus
from service.steps.subjects.resolve import MAX_TEXTS
from service.subjects.search import SearchableCorpora, corpus_reader, search
from tests import support

SIZES, REPEATS = (10_000, 50_000, 200_000), 9


def milliseconds(action: Callable[[], object]) -> float:
    """The median time of an action."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def index_in_process(
    settings: Settings, corpus_id: UUID, answer: "multiprocessing.Queue[tuple[float, float, float]]"
) -> None:
    """Read the corpus, then index it; (seconds to read, seconds to index, peak MiB)."""
    services = build(settings)
    with services.db.reading() as session:
        corpus = corpora.by_id(session, corpus_id)
    assert corpus is not None
    started = time.perf_counter()
    for _ in corpus_reader(services.corpus_roots, corpus).rows():
        pass
    read = time.perf_counter() - started
    started = time.perf_counter()
    index_corpus(services, corpus_id)
    answer.put((read, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    services.close()


def write_corpus(folder: Path, size: int) -> Path:
    """A JSON lines file of fictional people."""
    path = folder / f"{size}.jsonl"
    with path.open("w") as out:
        for i, text in enumerate(support.people(size, seed=size)):
            out.write(json.dumps({"text": text, "email": f"person{i}@example.org"}) + "\n")
    return path


def register(services: Services, path: Path, size: int) -> tuple[UUID, Corpus]:
    """A model without files, and the corpus at `path`, not indexed yet."""
    name = f"m{size}"
    with services.db.transaction() as session:
        model = Model(name=name, policy={}, retain={}, heldout={})
        session.add(model)
        session.flush()
        model_id = model.id
    corpus = add_corpus(
        services,
        name,
        name="crm",
        path=str(path),
        form=None,
        text_column="text",
        columns={"email": "email"},
        phone_region=None,
    )
    return model_id, corpus


def measure(services: Services, folder: Path, size: int) -> str:
    """A row of the table."""
    model_id, corpus = register(services, write_corpus(folder, size), size)
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[tuple[float, float, float]] = context.Queue()
    worker = context.Process(target=index_in_process, args=(services.settings, corpus.id, answer))
    worker.start()
    read, seconds, peak = answer.get(timeout=3600)
    worker.join()
    address = f"person{size // 2}@example.org"

    def sources() -> SearchableCorpora:
        return SearchableCorpora(services.wrapper, services.corpus_roots, services.db, model_id, max_texts=MAX_TEXTS)

    def look_up(subject: Subject) -> Callable[[], object]:
        def action() -> object:
            return search(sources(), subject)

        return action

    def scan() -> object:
        return [
            row for row in corpus_reader(services.corpus_roots, corpus).rows() if row.columns.get("email") == address
        ]

    by_address = milliseconds(
        look_up({"identities": [{"type": "email", "format": "raw", "value": address}], "names": []})
    )
    scanned = milliseconds(scan)
    rate = size / seconds
    return (
        f"| {size:,} | {read:.1f} | {seconds:.1f} | {rate:,.0f} | {peak:.0f} | {by_address:.1f} | {scanned:.0f} | "
        f"{scanned / by_address:,.1f} x |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    sizes = parser.parse_args().sizes
    print(machine())
    with temporary_services() as (services, root):
        print("| records | read alone, s | index, s | records/s | peak MiB | look-up, ms | scan, ms | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for size in sizes:
            print(measure(services, root, size), flush=True)


if __name__ == "__main__":
    main()
